"""What turns rows into hidden states: torch references now, with room for a Triton kernel beside each."""
