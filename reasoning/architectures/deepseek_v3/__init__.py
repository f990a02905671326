"""DeepSeek-V3 (arXiv 2412.19437): latent attention, mixture of experts, multi-token prediction, with Engram layers."""
