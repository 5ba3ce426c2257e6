"""The site's settings: checked when they are loaded and converted to core's types."""
