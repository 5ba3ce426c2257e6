"""When things begin and end: lab sessions, longest sessions, idle servers."""
