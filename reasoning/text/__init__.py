"""Text: tokenizer, prompts to token ids, and token ids back to text as they arrive."""
