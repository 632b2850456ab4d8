"""The frozen base model and its adapters: what training and serving both stand on."""
