"""The pages of a class: who has what, messages, and its lab sessions with a calendar."""
