"""Models of timm, the paper's VGG-11, their weights, and a survey of all timm models."""
