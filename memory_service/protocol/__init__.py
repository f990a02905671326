"""The protocol: messages, errors, security and shared memory, as clients and shards both know them."""
