"""Many runs: which jobs are done or lost, their progress, and its display."""
