"""The site's settings, checked at load and turned into core's words."""
