"""What several attacks share: their base classes, the poison plan, pictures and generators."""
