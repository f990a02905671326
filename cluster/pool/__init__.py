"""The memory pool: keeps shards running on a Ray cluster, fills them, heals, scales and spreads them."""
