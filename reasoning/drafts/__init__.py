"""Draft tokens: guesses at what follows a sequence, several of which the model checks in one step."""
