"""Draft tokens: guesses at what follows a sequence, which the model then checks several at a time."""
