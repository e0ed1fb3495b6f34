#include "changes.h"

#include <vector>

#include "dlpack.h"

namespace vqvae_fast {
namespace {

// An Attribute is one of Tensor's, found once: looking it up takes longer than reading it.
struct Attribute {
  PyObject* descriptor = nullptr;
  descrgetfunc get = nullptr;

  // Returns null with a Python error if the tensor's cannot be read.
  PyObject* of(PyObject* tensor) const {
    return get(descriptor, tensor, reinterpret_cast<PyObject*>(Py_TYPE(tensor)));
  }

  // Returns 1, 0, or -1 with a Python error.
  int flag_of(PyObject* tensor) const {
    PyObject* value = of(tensor);
    if (value == nullptr) return -1;
    const int result = value == Py_True;
    Py_DECREF(value);
    return result;
  }
};

// What describe() needs of torch. Without the table of functions, no tensor is described.
PyObject *tensor_class, *parameter_class;
Attribute version_of, requires_grad_of, is_leaf_of, grad_of;
const dlpack::Api* api = nullptr;

// Returns null without a Python error if there is no such attribute.
PyObject* find(PyObject* owner, const char* name) {
  PyObject* found = owner == nullptr ? nullptr : PyObject_GetAttrString(owner, name);
  if (found == nullptr) PyErr_Clear();
  return found;
}

PyObject* find_in_module(const char* module_name, const char* name) {
  PyObject* module = PyImport_ImportModule(module_name);
  PyObject* found = find(module, name);
  Py_XDECREF(module);
  return found;
}

Attribute find_attribute(const char* name) {
  PyObject* descriptor = find(tensor_class, name);
  if (descriptor == nullptr) return {};
  void* get = PyType_GetSlot(Py_TYPE(descriptor), Py_tp_descr_get);
  return {descriptor, reinterpret_cast<descrgetfunc>(get)};
}

const dlpack::Api* find_api() {
  PyObject* capsule = find(tensor_class, dlpack::kAttribute);
  if (capsule == nullptr) return nullptr;
  void* found = PyCapsule_GetPointer(capsule, dlpack::kCapsule);
  Py_DECREF(capsule);
  if (found == nullptr) PyErr_Clear();
  const auto* table = static_cast<const dlpack::Api*>(found);
  return table != nullptr && table->major_version == dlpack::kMajorVersion ? table : nullptr;
}

struct Description {
  std::vector<int64_t> facts;
  bool requires_grad = false, has_gradient = false;

  // Adds a tensor. Returns false, perhaps with a Python error, if it is of a special kind.
  bool add(PyObject* tensor) {
    // Tensors of other classes may hold no numbers, or have attributes of their own.
    auto* type = reinterpret_cast<PyObject*>(Py_TYPE(tensor));
    if (type != tensor_class && type != parameter_class) return false;
    dlpack::Layout layout;
    if (api->read_layout(tensor, &layout) != 0 || layout.data == nullptr) return false;
    if (layout.dims > 0 && layout.strides == nullptr) return false;
    PyObject* counted = version_of.of(tensor);
    if (counted == nullptr) return false;  // of inference mode
    const long long version = PyLong_AsLongLong(counted);
    Py_DECREF(counted);
    if (version < 0) return false;  // a mode of torch has answered, and with no number
    facts.insert(facts.end(),
                 {reinterpret_cast<int64_t>(tensor), reinterpret_cast<int64_t>(layout.data),
                  version, layout.dtype_code, layout.dtype_bits, layout.device_type,
                  layout.device_index, layout.dims});
    facts.insert(facts.end(), layout.sizes, layout.sizes + layout.dims);
    facts.insert(facts.end(), layout.strides, layout.strides + layout.dims);
    return add_gradient(tensor);
  }

 private:
  bool add_gradient(PyObject* tensor) {
    const int requires_it = requires_grad_of.flag_of(tensor);
    // torch warns of reading the gradient of a tensor that is no leaf.
    const int is_leaf = requires_it == 0 ? 1 : is_leaf_of.flag_of(tensor);
    if (requires_it < 0 || is_leaf < 0) return false;
    requires_grad |= requires_it == 1;
    if (is_leaf == 0 || has_gradient) return true;
    PyObject* gradient = grad_of.of(tensor);
    if (gradient == nullptr) return false;
    has_gradient = gradient != Py_None;
    Py_DECREF(gradient);
    return true;
  }
};

}  // namespace

void prepare_to_describe() {
  tensor_class = find_in_module("torch", "Tensor");
  parameter_class = find_in_module("torch.nn", "Parameter");
  version_of = find_attribute("_version");
  requires_grad_of = find_attribute("requires_grad");
  is_leaf_of = find_attribute("is_leaf");
  grad_of = find_attribute("grad");
  const bool complete = version_of.get && requires_grad_of.get && is_leaf_of.get && grad_of.get;
  api = complete ? find_api() : nullptr;
}

PyObject* describe(PyObject* tensors) {
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
