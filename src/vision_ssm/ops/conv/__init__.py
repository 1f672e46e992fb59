"""The causal depthwise convolution along a sequence."""
