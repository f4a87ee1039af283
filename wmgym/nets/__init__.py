"""Networks with weights. They know nothing of diffusion or memory."""
