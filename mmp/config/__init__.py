"""What a user can say: the schema, its checks, the identity of runs, and objects made from YAML."""
