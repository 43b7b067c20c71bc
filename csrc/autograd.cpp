// WithGrad and WithStatistics of imbloss/_ops.py as nodes of autograd in C++: for small losses Python's cost more than
// the kernels. Autograd's classes are no part of torch's stable ABI: this module serves the very torch it was compiled
// with, and Python any other.
#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>
#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace imbloss {
namespace {

namespace py = pybind11;
using at::Tensor;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// Attributes of a Traversal.
PyObject *eager_name, *launch_forward_name, *later_name, *later_from_statistics_name;

// Hands its Python error, if any, to whoever called the engine.
py::object checked(PyObject* result) {
  if (result) return py::reinterpret_steal<py::object>(result);
  python_error error;
  error.persist();
  throw std::move(error);
}

py::object wrapped(Tensor tensor) {
  if (!tensor.defined()) return py::none();
  return checked(THPVariable_Wrap(std::move(tensor)));
}

// An upstream gradient of 1 that can be looked at: no batch, no fake, no view that changes signs, no other device.
bool is_one(const Tensor& upstream) {
  using c10::DispatchKey;
  constexpr c10::DispatchKeySet in_the_way({DispatchKey::Python, DispatchKey::Batched, DispatchKey::FuncTorchBatched,
                                            DispatchKey::FuncTorchGradWrapper, DispatchKey::Functionalize,
                                            DispatchKey::Negative, DispatchKey::ZeroTensor});
  if (!upstream.is_cpu() || upstream.layout() != at::kStrided || upstream.dim() != 0 ||
      upstream.key_set().has_any(in_the_way))
    return false;
  switch (upstream.scalar_type()) {
    case at::kFloat:
      return *upstream.const_data_ptr<float>() == 1;
    case at::kDouble:
      return *upstream.const_data_ptr<double>() == 1;
    default:
      return false;
  }
}

// Hands over the gradient that the forward made, if it made one, is asked for it the first time and for once; all else
// is Traversal.later's.
class FusedLossBackward : public Node {
 public:
  FusedLossBackward(const Tensor& logits, py::object recipe, PyObject* later_name, std::vector<SavedVariable> saved,
                    Tensor grad)
      : Node(torch::autograd::collect_next_edges(logits)),
        later_name_(later_name),
        recipe_(recipe.release().ptr()),
        saved_(std::move(saved)),
        grad_(std::move(grad)) {}

  ~FusedLossBackward() override {
    if (!Py_IsInitialized()) return;
    py::gil_scoped_acquire gil;
    Py_DECREF(recipe_);
  }

  std::string name() const override { return "FusedLossBackward"; }

  variable_list apply(variable_list&& upstream) override {
    Tensor grad;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      grad = std::move(grad_);
      grad_.reset();
    }
    if (!upstream[0].defined()) return {Tensor()};
    if (grad.defined() && !at::GradMode::is_enabled() && is_one(upstream[0])) return {std::move(grad)};
    return {later(upstream[0], std::move(grad))};
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    grad_.reset();
    for (SavedVariable& variable : saved_) variable.reset_data();
  }

  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    for (const SavedVariable& variable : saved_) args.collect(variable, false);
    py::gil_scoped_acquire gil;
    args.collect(std::string(py::repr(recipe_)));
  }

  variable_list apply_with_saved(const variable_list& upstream,
                                 torch::dynamo::autograd::SwapSavedVariables& swap) override {
    for (SavedVariable& variable : saved_) swap.before(variable);
    variable_list grads{upstream[0].defined() ? later(upstream[0], Tensor()) : Tensor()};
    for (SavedVariable& variable : saved_) swap.after(variable);
    return grads;
  }

 private:
  PyObject *const later_name_, *const recipe_;  // recipe: (traversal, options)
  std::vector<SavedVariable> saved_;
  Tensor grad_;

  Tensor later(const Tensor& upstream, Tensor grad) {
    py::gil_scoped_acquire gil;
    py::list saved(saved_.size());
    for (size_t i = 0; i < saved_.size(); i++) saved[i] = wrapped(saved_[i].unpack());
    PyObject* const traversal = PyTuple_GET_ITEM(recipe_, 0);
    PyObject* const options = PyTuple_GET_ITEM(recipe_, 1);
    const py::object upstream_object = wrapped(upstream), grad_object = wrapped(std::move(grad));
    PyObject* const args[] = {traversal, options, upstream_object.ptr(), grad_object.ptr(), saved.ptr()};
    const py::object result = checked(PyObject_VectorcallMethod(later_name_, args, 5, nullptr));
    return THPVariable_Unpack(result.ptr());
  }
};

// Nodes are counted by pointers of another kind from torch to torch.
template <class Pointer, class T>
Pointer owner_of(T* node) {
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<Node>>) return Pointer(node, [](auto* n) { deleteNode(n); });
  else return Pointer::unsafe_steal_from_new(node);
}

// The loss of (logits, ((traversal, options), target, operands)); the forward is called with keep_grad as it is here.
PyObject* loss_with_node(PyObject* const* args, Py_ssize_t count, PyObject* forward_name, bool keep_grad) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count == 2 && THPVariable_Check(args[0]) && PyTuple_Check(args[1]) && PyTuple_GET_SIZE(args[1]) == 3,
                   "expected logits and a tuple of three");
  const Tensor& logits = THPVariable_Unpack(args[0]);
  PyObject *recipe = PyTuple_GET_ITEM(args[1], 0), *target = PyTuple_GET_ITEM(args[1], 1),
           *operands = PyTuple_GET_ITEM(args[1], 2), *options = PyTuple_GET_ITEM(recipe, 1);
  const Py_ssize_t num_options = PyTuple_GET_SIZE(options);
  PyObject* arguments[16] = {args[0], target, operands};
  TORCH_CHECK(num_options <= 12, "expected at most 12 options");
  for (Py_ssize_t i = 0; i < num_options; i++) arguments[3 + i] = PyTuple_GET_ITEM(options, i);
  arguments[3 + num_options] = keep_grad ? Py_True : Py_False;

  py::object result;
  {
    const at::AutoGradMode no_grad(false);
    const py::object forward = checked(PyObject_GetAttr(PyTuple_GET_ITEM(recipe, 0), forward_name));
    result = checked(PyObject_Vectorcall(forward.ptr(), arguments, 4 + num_options, nullptr));
  }
  PyObject* loss = PyTuple_GET_ITEM(result.ptr(), 0);
  Tensor kept = THPVariable_Unpack(PyTuple_GET_ITEM(result.ptr(), 1));

  std::vector<SavedVariable> saved;
  auto save = [&](PyObject* tensor) {
    saved.emplace_back(tensor == Py_None ? Tensor() : THPVariable_Unpack(tensor), false);
  };
  const py::object sequence = checked(PySequence_Fast(operands, "expected operands to be a sequence"));
  const Py_ssize_t num_operands = PySequence_Fast_GET_SIZE(sequence.ptr());
  saved.reserve(3 + num_operands);
  save(args[0]);
  save(target);
  if (!keep_grad) saved.emplace_back(kept, false);
  for (Py_ssize_t i = 0; i < num_operands; i++) save(PySequence_Fast_GET_ITEM(sequence.ptr(), i));

  auto node = owner_of<decltype(torch::autograd::Edge::function)>(new FusedLossBackward(
      logits, py::reinterpret_borrow<py::object>(recipe), keep_grad ? later_name : later_from_statistics_name,
      std::move(saved), keep_grad ? std::move(kept) : Tensor()));
  Py_INCREF(loss);
  torch::autograd::set_history(THPVariable_Unpack(loss), node);
  return loss;
  END_HANDLE_TH_ERRORS
}

PyObject* with_grad(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return loss_with_node(args, count, eager_name, true);
}
PyObject* with_statistics(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return loss_with_node(args, count, launch_forward_name, false);
}

PyMethodDef methods[] = {
    {"with_grad", reinterpret_cast<PyCFunction>(with_grad), METH_FASTCALL, "As imbloss._ops.WithGrad.apply."},
    {"with_statistics", reinterpret_cast<PyCFunction>(with_statistics), METH_FASTCALL,
     "As imbloss._ops.WithStatistics.apply."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_autograd", "Nodes of autograd in C++.", -1, methods};

}  // namespace
}  // namespace imbloss

PyMODINIT_FUNC PyInit__autograd() {
  imbloss::eager_name = PyUnicode_InternFromString("eager");
  imbloss::launch_forward_name = PyUnicode_InternFromString("launch_forward");
  imbloss::later_name = PyUnicode_InternFromString("later");
  imbloss::later_from_statistics_name = PyUnicode_InternFromString("later_from_statistics");
  return PyModule_Create(&imbloss::module);
}
