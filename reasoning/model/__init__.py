"""What models of every architecture are built from: batches, normalisation, rotary embedding, the Engram layer."""
