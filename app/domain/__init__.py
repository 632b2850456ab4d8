"""Pure rules of fine-tuning as a service: values, states and registries; no input, no output."""
