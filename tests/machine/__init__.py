"""Random programs, run through a real application and through a plain model of the contract."""
