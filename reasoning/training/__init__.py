"""The training step: a backbone shared by workers, and tables that learn in a memory."""
