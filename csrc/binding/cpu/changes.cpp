#include "changes.h"

#include <vector>

#include "dlpack.h"

namespace vqvae_fast {
namespace {

// What description() needs of torch.
PyObject *tensor_class, *parameter_class;
PyObject *version_name, *requires_grad_name, *is_leaf_name, *grad_name;
const dlpack::Api* api = nullptr;

// Returns null without a Python error if there is no such attribute.
PyObject* attribute(PyObject* of, const char* name) {
  PyObject* found = of == nullptr ? nullptr : PyObject_GetAttrString(of, name);
  if (found == nullptr) PyErr_Clear();
  return found;
}

PyObject* attribute_of_module(const char* module_name, const char* name) {
  PyObject* module = PyImport_ImportModule(module_name);
  PyObject* found = attribute(module, name);
  Py_XDECREF(module);
  return found;
}

// Gets a flag of a tensor: 1, 0, or -1 with a Python error.
int flag(PyObject* tensor, PyObject* name) {
  PyObject* value = PyObject_GetAttr(tensor, name);
  if (value == nullptr) return -1;
  const int result = value == Py_True;
  Py_DECREF(value);
  return result;
}

struct Description {
  std::vector<int64_t> facts;
  bool requires_grad = false, has_gradient = false;

  // Adds a tensor. Returns false, perhaps with a Python error, if it is of a special kind.
  bool add(PyObject* tensor) {
    // Tensors of other classes may hold no numbers, or have their own versions of what is read
    // here.
    auto* type = reinterpret_cast<PyObject*>(Py_TYPE(tensor));
    if (type != tensor_class && type != parameter_class) return false;
    dlpack::Layout layout;
    if (api->read_layout(tensor, &layout) != 0 || layout.data == nullptr) return false;
    PyObject* counted = PyObject_GetAttr(tensor, version_name);
    if (counted == nullptr) return false;  // of inference mode
    const long long version = PyLong_AsLongLong(counted);
    Py_DECREF(counted);
    facts.insert(facts.end(),
                 {reinterpret_cast<int64_t>(layout.data), version, layout.dtype_code,
                  layout.dtype_bits, layout.device_type, layout.device_index, layout.dims});
    facts.insert(facts.end(), layout.sizes, layout.sizes + layout.dims);
    facts.insert(facts.end(), layout.strides, layout.strides + layout.dims);
    return add_gradient(tensor);
  }

 private:
  bool add_gradient(PyObject* tensor) {
    const int requires_it = flag(tensor, requires_grad_name);
    // torch warns of reading the gradient of a tensor that is no leaf.
    const int is_leaf = requires_it == 0 ? 1 : flag(tensor, is_leaf_name);
    if (requires_it < 0 || is_leaf < 0) return false;
    requires_grad |= requires_it == 1;
    if (is_leaf == 0 || has_gradient) return true;
    PyObject* gradient = PyObject_GetAttr(tensor, grad_name);
    if (gradient == nullptr) return false;
    has_gradient = gradient != Py_None;
    Py_DECREF(gradient);
    return true;
  }
};

}  // namespace

void prepare_descriptions() {
  version_name = PyUnicode_InternFromString("_version");
  requires_grad_name = PyUnicode_InternFromString("requires_grad");
  is_leaf_name = PyUnicode_InternFromString("is_leaf");
  grad_name = PyUnicode_InternFromString("grad");
  tensor_class = attribute_of_module("torch", "Tensor");
  parameter_class = attribute_of_module("torch.nn", "Parameter");
  PyObject* capsule = attribute(tensor_class, dlpack::kAttribute);
  if (capsule == nullptr) return;
  api = static_cast<const dlpack::Api*>(PyCapsule_GetPointer(capsule, dlpack::kCapsule));
  Py_DECREF(capsule);
  if (api == nullptr) PyErr_Clear();
  if (api != nullptr && api->major_version != dlpack::kMajorVersion) api = nullptr;
}

PyObject* description(PyObject*, PyObject* tensors) {
  const Py_ssize_t count = PySequence_Size(tensors);
  if (count < 0) return nullptr;
  Description all;
  bool is_usual = api != nullptr;
  for (Py_ssize_t i = 0; i < count && is_usual; ++i) {
    PyObject* tensor = PySequence_GetItem(tensors, i);
    if (tensor == nullptr) return nullptr;
    is_usual = all.add(tensor);
    Py_DECREF(tensor);
  }
  if (!is_usual) {
    PyErr_Clear();
    return Py_NewRef(Py_None);
  }
  PyObject* facts = PyBytes_FromStringAndSize(reinterpret_cast<const char*>(all.facts.data()),
                                              all.facts.size() * sizeof(int64_t));
  return Py_BuildValue("NOO", facts, all.requires_grad ? Py_True : Py_False,
                       all.has_gradient ? Py_True : Py_False);
}

}  // namespace vqvae_fast
