"""Sampling by vLLM, which follows the weights of the student."""
