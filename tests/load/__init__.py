"""The load test: a real server process, real clients, and what each of them was told."""
