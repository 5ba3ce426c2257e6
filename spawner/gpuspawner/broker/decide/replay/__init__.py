"""The same code on a virtual clock: a course or a term, replayed."""
