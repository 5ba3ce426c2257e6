"""IPython's settings for every kernel of the lab; a user's own profile comes on top."""

c = get_config()  # noqa: F821 - IPython puts it here
c.InteractiveShellApp.extensions.append("gpuspawner_notice")
