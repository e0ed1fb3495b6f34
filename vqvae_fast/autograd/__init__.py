"""Every autograd Function of the package, and what their backward passes share."""
