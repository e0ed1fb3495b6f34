// Tells whether tensors have changed, without reading their elements.
#pragma once

#include <Python.h>

namespace vqvae_fast {

// Imports what describe() needs of torch. The module calls this once, when it is made.
void prepare_to_describe();

// Describes a sequence of tensors so that two descriptions differ if one of the tensors was
// replaced or written to in between: which object it is, where it lies, its version, dtype, device,
// shape and strides. The caller keeps the objects, so that no other one has their addresses. Also
// says whether any requires a gradient and whether any has one. Returns a tuple of these three, or
// None unless all are tensors of the usual kind. nn/codebook/changes.py has the same in Python,
// where it takes several times as long.
PyObject* describe(PyObject* tensors);

}  // namespace vqvae_fast
