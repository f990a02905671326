"""One reasoning worker: config, tokenizer, hashing, model, engine and training. Knows nothing of Ray."""
