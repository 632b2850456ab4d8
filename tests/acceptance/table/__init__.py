"""Every task, on a real model and real data, through the API to a served prediction."""
