"""`bestiary port`: what a model file written for vLLM needs, and the plugin project around it, unchanged."""
