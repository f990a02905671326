"""Draft tokens: proposals of what follows a sequence, several of which the model verifies in a step."""
