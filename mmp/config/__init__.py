"""Configuration: the schema behind ``conf/``, its validation, the identity of a run, and objects made from it."""
