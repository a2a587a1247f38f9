"""Models and runs in files: ours, the public implementation's, safetensors, exported graphs."""
