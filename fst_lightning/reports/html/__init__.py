"""Pages for the browser: the report of a run and the leaderboard of a sweep."""
