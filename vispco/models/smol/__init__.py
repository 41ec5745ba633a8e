"""The testbed: a LLaVA on the pretrained SmolLM2-135M-Instruct, with a small vision tower trained on ``scene-vqa``."""
