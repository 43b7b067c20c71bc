// The module that is imported: loading it registers the operators of ops.cpp.
#include <pybind11/pybind11.h>

#define IMBLOSS_STRING(x) IMBLOSS_STRING_(x)
#define IMBLOSS_STRING_(x) #x

namespace imbloss {
void set_fill_new_tensors(bool fill);  // ops.cpp
void keep_at_most(size_t bytes);
size_t kept();
}  // namespace imbloss

PYBIND11_MODULE(IMBLOSS_MODULE, m) {
  m.doc() = "The compiled core of imbloss for one instruction set.";
  m.def("isa", [] { return IMBLOSS_STRING(IMBLOSS_ISA); }, "The instruction set that this core was compiled for.");
  m.def(
      "build_info",
      [] {
        pybind11::dict info;
        info["isa"] = IMBLOSS_STRING(IMBLOSS_ISA);
        info["compiler"] = __VERSION__;
        info["flags"] = IMBLOSS_STRING(IMBLOSS_FLAGS);
        info["torch"] = IMBLOSS_STRING(IMBLOSS_TORCH);
        return info;
      },
      "Compiler, flags and the torch whose headers were used.");
  m.def("set_fill_new_tensors", &imbloss::set_fill_new_tensors, "Fill new outputs with NaN before they are computed.");
  m.def("keep_at_most", &imbloss::keep_at_most,
        "Bytes of freed results to keep for the next ones; frees what is kept now.");
  m.def("kept", &imbloss::kept, "Bytes of freed results that are kept.");
}
