"""What a run leaves behind: its folder, exports and logs."""
