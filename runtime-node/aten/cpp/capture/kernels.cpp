// The few operators with kernels of their own: making storages, moving bytes, views as metadata.
#include <ATen/InferSize.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/native/Resize.h>
#include <ATen/native/ResizeCommon.h>
#include <ATen/native/TensorFactories.h>
#include <ATen/native/TensorShape.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <torch/library.h>

#include <limits>

#include "op.h"
#include "script.h"
#include "../torch_version.h"

namespace genie {

namespace {

constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

void check_device(std::optional<at::Device> device) {
  if (!device || !device->has_index()) return;
  TORCH_CHECK(device->index() < device_count(), "remote_accelerator: there is no device ",
              int(device->index()), ", the session has ", device_count(), " (0 to ",
              device_count() - 1, ")");
}

bool fills_memory() {
  const auto& context = at::globalContext();
  return C10_UNLIKELY(context.deterministicAlgorithms() &&
                      context.deterministicFillUninitializedMemory());
}

// Fresh memory, as every device has it under deterministic algorithms.
at::Tensor filled(at::Tensor fresh) {
  if (fills_memory()) at::native::fill_empty_deterministic_(fresh);
  return fresh;
}

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype,
                 std::optional<at::Layout> layout, std::optional<at::Device> device,
                 std::optional<bool>, std::optional<at::MemoryFormat> format) {
  ensure();
  check_device(device);
  TORCH_CHECK_NOT_IMPLEMENTED(!layout || *layout == at::kStrided,
                              "remote_accelerator holds strided tensors only, not ", *layout);
  return filled(at::detail::empty_generic(size, allocator(), kKeys, c10::dtype_or_default(dtype),
                                          format));
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                         std::optional<at::Device> device, std::optional<bool>) {
  ensure();
  check_device(device);
  return filled(at::detail::empty_strided_generic(size, stride, allocator(), kKeys,
                                                  c10::dtype_or_default(dtype)));
}

at::Tensor as_strided(const at::Tensor& self, at::IntArrayRef size, at::IntArrayRef stride,
                      std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, size, stride, offset);
}

at::Tensor view(const at::Tensor& self, at::IntArrayRef size) {
  return at::native::view(self, size);
}

at::Tensor reshape_alias(const at::Tensor& self, at::IntArrayRef size, at::IntArrayRef stride) {
  return at::native::_reshape_alias(self, size, stride);
}

at::Tensor unfold(const at::Tensor& self, int64_t dim, int64_t size, int64_t step) {
  return at::native::unfold(self, dim, size, step);
}

at::Tensor view_as_real(const at::Tensor& self) { return at::native::view_as_real(self); }

at::Tensor view_as_complex(const at::Tensor& self) { return at::native::view_as_complex(self); }

const at::Tensor& resize_(const at::Tensor& self, at::IntArrayRef size,
                          std::optional<at::MemoryFormat> format) {
  if (self.sizes().equals(size) && !format) return self;
  // First, so that a tensor that cannot grow so far stays as it is.
  check_storage_bytes(at::detail::computeStorageNbytesContiguous(size, self.dtype().itemsize(),
                                                                 self.storage_offset()));
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(size);
  if (format) {
    TORCH_CHECK(*format != at::MemoryFormat::Preserve, "Unsupported memory format ", *format);
    impl->empty_tensor_restride(*format);
  }
  uint64_t need = at::detail::computeStorageNbytes(self.sizes(), self.strides(),
                                                   self.dtype().itemsize(), self.storage_offset());
  auto& storage = *self.storage().unsafeGetStorageImpl();
  if (need > storage.nbytes()) {
    auto old_bytes = static_cast<int64_t>(storage.nbytes());
    resize_storage(storage, need);
    if (fills_memory()) at::native::fill_resize_deterministic_(self, old_bytes);
  }
  return self;
}

at::Tensor& set_storage(at::Tensor& self, at::Storage source, int64_t offset,
                        at::IntArrayRef size, at::IntArrayRef stride) {
  at::native::checkSetStorage(self, source, offset, size, stride);
  self.unsafeGetTensorImpl()->set_storage_offset(offset);
  std::optional<at::IntArrayRef> strides;
  if (stride.data() != nullptr) strides = stride;
  auto* impl = self.unsafeGetTensorImpl();
  if (strides)
    impl->set_sizes_and_strides(size, *strides, offset);
  else
    impl->set_sizes_contiguous(size);
  uint64_t need = at::detail::computeStorageNbytes(self.sizes(), self.strides(),
                                                   self.dtype().itemsize(), offset);
  auto& storage = *self.storage().unsafeGetStorageImpl();
  if (self.numel() > 0 && need > storage.nbytes()) resize_storage(storage, need);
  return self;
}

at::Tensor& set_whole_storage(at::Tensor& self, at::Storage source) {
  int64_t elements = static_cast<int64_t>(source.nbytes() / self.dtype().itemsize());
  return set_storage(self, std::move(source), 0, {elements}, {});
}

at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& source) {
  return at::native::set_tensor_(self, source);
}

at::Tensor& set_nothing(at::Tensor& self) {
  ensure();
  auto fresh = allocator()->allocate(0);
  at::Storage storage(at::Storage::use_byte_size_t(), 0, std::move(fresh), allocator(), true);
  return set_storage(self, std::move(storage), 0, {0}, {});
}

bool is_set_to(const at::Tensor& self, const at::Tensor& other) {
  return self.storage().unsafeGetStorageImpl() == other.storage().unsafeGetStorageImpl() &&
         self.storage_offset() == other.storage_offset() && self.sizes().equals(other.sizes()) &&
         self.strides().equals(other.strides());
}

// A leaf that wants a gradient: a parameter, as a rule. Buffers and frozen parameters are announced
// when their module moves (genie/weights.py).
bool is_parameter(const at::Tensor& t) { return t.requires_grad() && t.is_leaf(); }

void upload(const at::Tensor& from, const at::Tensor& to, bool parameter) {
  auto& r = remote(to);
  if (notes()) notes()->keep(to);
  uint64_t len = to.nbytes();
  bool whole = to.storage_offset() == 0 && len == r.bytes;
  uint8_t content = whole ? (parameter ? 2 : 1) : 0;
  GenieError error;
  Waiting waiting;
  check(tape().upload(r.id, static_cast<uint64_t>(to.storage_offset()) * to.dtype().itemsize(),
                      from.const_data_ptr(), len, content, &error),
        error);
}

void download(const at::Tensor& from, const at::Tensor& to) {
  GenieError error;
  Waiting waiting;
  check(tape().read(remote(from).id,
                    static_cast<uint64_t>(from.storage_offset()) * from.dtype().itemsize(),
                    to.mutable_data_ptr(), from.nbytes(), &error),
        error);
}

void record_copy(const at::Tensor& to, const at::Tensor& from) {
  if (from.is_complex() && !to.is_complex() && to.scalar_type() != at::kBool)
    TORCH_WARN_ONCE("Casting complex values to real discards the imaginary part");
  static CaptureKernel kernel(c10::Dispatcher::singleton().findSchemaOrThrow("aten::copy_", ""));
  static auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::copy_", "");
  torch::jit::Stack stack{to, from, false};
  kernel(op, kKeys, &stack);
}

at::Tensor cpu_like(const at::Tensor& t) {
  return at::empty_strided(t.sizes(), t.strides(), t.options().device(at::kCPU).pinned_memory(false));
}

// Scattered elements without the node's help: all bytes between the first and the last.
at::Tensor whole_span(const at::Tensor& from) {
  int64_t span = 1;
  for (int64_t i = 0; i < from.dim(); ++i) span += (from.size(i) - 1) * from.stride(i);
  auto bytes = at::empty({span}, from.options().device(at::kCPU).pinned_memory(false));
  download(from.as_strided({span}, {1}, from.storage_offset()), bytes);
  return bytes.as_strided(from.sizes(), from.strides(), 0);
}

void to_device(const at::Tensor& from, const at::Tensor& to) {
  if (to.numel() == 0) return;
  bool parameter = is_parameter(from) || is_parameter(to);
  if (to.is_non_overlapping_and_dense()) {
    bool ready = from.scalar_type() == to.scalar_type() && from.sizes().equals(to.sizes()) &&
                 from.strides().equals(to.strides()) && !from.is_conj() && !from.is_neg();
    if (ready) return upload(from, to, parameter);
    auto staged = cpu_like(to);
    staged.copy_(from);
    return upload(staged, to, parameter);
  }
  if (!aten_impl) {
    // Scattered elements without the node's help: change them among their neighbours.
    auto span = whole_span(to);
    span.copy_(from);
    int64_t bytes = 1;
    for (int64_t i = 0; i < to.dim(); ++i) bytes += (to.size(i) - 1) * to.stride(i);
    return upload(span.as_strided({bytes}, {1}, 0),
                  to.as_strided({bytes}, {1}, to.storage_offset()), parameter);
  }
  // Scattered elements: bring them over densely, then copy there.
  auto staged = at::empty(to.sizes(), to.options());
  to_device(from, staged);
  record_copy(to, staged);
}

void to_host(const at::Tensor& from, const at::Tensor& to) {
  if (from.numel() == 0) return;
  if (from.is_conj() || from.is_neg()) return to_host(from.resolve_conj().resolve_neg(), to);
  if (!from.is_non_overlapping_and_dense()) {
    if (aten_impl) return to_host(from.contiguous(), to);
    to.copy_(whole_span(from));
    return;
  }
  bool ready = from.scalar_type() == to.scalar_type() && from.sizes().equals(to.sizes()) &&
               from.strides().equals(to.strides());
  if (ready) return download(from, to);
  auto staged = cpu_like(from);
  download(from, staged);
  to.copy_(staged);
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  at::AutoDispatchBelowADInplaceOrView below;
  if (to.is_conj()) {
    copy_from(from.conj(), at::_conj(to), false);
    return to;
  }
  if (to.is_neg()) {
    copy_from(at::_neg_view(from), at::_neg_view(to), false);
    return to;
  }
  if (!from.sizes().equals(to.sizes())) (void)from.expand(to.sizes());  // refuses in eager's words
  if (is_remote(from) && is_remote(to)) {
    if (to.numel() > 0) record_copy(to, from);
  } else if (is_remote(to)) {
    TORCH_CHECK(from.device().is_cpu(), "remote_accelerator: copies come from the CPU, not from ",
                from.device());
    to_device(from.resolve_conj().resolve_neg(), to);
  } else {
    TORCH_CHECK(to.device().is_cpu(), "remote_accelerator: copies go to the CPU, not to ",
                to.device());
    to_host(from, to);
  }
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar local_scalar_dense(const at::Tensor& self) {
  auto value = at::empty({}, self.options().device(at::kCPU).pinned_memory(false));
  GenieError error;
  {
    Waiting waiting;
    check(tape().read(remote(self).id,
                      static_cast<uint64_t>(self.storage_offset()) * self.dtype().itemsize(),
                      value.mutable_data_ptr(), self.dtype().itemsize(), &error),
          error);
  }
  if (self.is_conj()) value = value.conj_physical();
  if (self.is_neg()) value = value.neg();
  return value.item();
}

// `Module.to` must set the parameters' data, not replace the parameters: tied ones stay tied.
bool has_compatible_shallow_copy_type(const at::Tensor& self, const at::Tensor& from) {
  auto plain = [](const at::Tensor& t) {
    return t.layout() == at::kStrided && (t.device().is_cpu() || t.device().type() == kRemote);
  };
  return plain(self) && plain(from);
}

at::Tensor zeros_at_once(at::IntArrayRef size, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout> layout, std::optional<at::Device> device,
                         std::optional<bool> pinned) {
  return empty(size, dtype, layout, device, pinned, std::nullopt).zero_();
}

// The result's length follows from the numbers, which stay in the key of its template.
at::Tensor& arange_out(const at::Scalar& start, const at::Scalar& end, const at::Scalar& step,
                       at::Tensor& out) {
  static auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::arange", "start_out");
  static CaptureKernel kernel(op);
  double length = 0;
  if (!at::isComplexType(out.scalar_type())) {
    // Shape and checks as on the CPU: asked of a tensor without data.
    auto meta = at::empty({0}, out.options().device(at::kMeta));
    if (start.isIntegral(false) && end.isIntegral(false) && step.isIntegral(false) &&
        step.toLong() != 0) {
      int64_t s = start.toLong(), e = end.toLong(), d = step.toLong();
      TORCH_CHECK((d > 0 && e >= s) || (d < 0 && e <= s),
                  "upper bound and lower bound inconsistent with step sign");
      length = static_cast<double>((e - s + d - (d > 0 ? 1 : -1)) / d);
    } else {
      meta = at::arange_out(meta, start, end, step);
      length = static_cast<double>(meta.numel());
    }
  }
  int64_t size = static_cast<int64_t>(length);
  if (out.numel() != size) {
    if (out.numel() > 0) TORCH_WARN("The number of elements in the out tensor of shape ",
                                    out.sizes(), " is ", out.numel(),
                                    " which does not match the computed number of elements ", size,
                                    ". Note that this may occur as a result of rounding error. "
                                    "The out tensor will be resized to a tensor of shape (", size,
                                    ",).");
    out.resize_({size});
  }
  torch::jit::Stack stack{start, end, step, out};
  kernel(op, kKeys, &stack);
  return out;
}

// The CPU's kernel grows the observer's four results to one element a channel when it first sees any;
// an operator on the tape changes no sizes.
std::tuple<at::Tensor, at::Tensor> observe_and_fake_quantize(
    const at::Tensor& self, const at::Tensor& observes, const at::Tensor& quantizes,
    at::Tensor& running_min, at::Tensor& running_max, at::Tensor& scale, at::Tensor& zero_point,
    double averaging, int64_t quant_min, int64_t quant_max, int64_t axis, bool per_row,
    bool symmetric) {
  static auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("aten::_fused_moving_avg_obs_fq_helper", "");
  static CaptureKernel kernel(op);
  if (per_row && axis >= 0 && axis < self.dim() && running_min.numel() == 0) {
    int64_t channels = self.size(axis);
    running_min.resize_({channels}).fill_(std::numeric_limits<float>::infinity());
    running_max.resize_({channels}).fill_(-std::numeric_limits<float>::infinity());
    scale.resize_({channels});
    zero_point.resize_({channels});
  }
  torch::jit::Stack stack{self,  observes,   quantizes, running_min, running_max, scale, zero_point,
                          averaging, quant_min, quant_max, axis, per_row, symmetric};
  kernel(op, kKeys, &stack);
  return {stack[0].toTensor(), stack[1].toTensor()};
}

// PyTorch computes this window by a kernel per device, not by an operator: the CPU's will do.
at::Tensor kaiser_window(int64_t length, bool periodic, double beta,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout> layout,
                         std::optional<at::Device> device, std::optional<bool>) {
  check_device(device);
  auto window = at::kaiser_window(length, periodic, beta, dtype, layout, at::kCPU, false);
  return window.to(at::Device(kRemote, 0));
}

at::Tensor kaiser_window_default(int64_t length, std::optional<at::ScalarType> dtype,
                                 std::optional<at::Layout> layout,
                                 std::optional<at::Device> device, std::optional<bool> pinned) {
  return kaiser_window(length, true, 12.0, dtype, layout, device, pinned);
}

at::Tensor kaiser_window_periodic(int64_t length, bool periodic,
                                  std::optional<at::ScalarType> dtype,
                                  std::optional<at::Layout> layout,
                                  std::optional<at::Device> device, std::optional<bool> pinned) {
  return kaiser_window(length, periodic, 12.0, dtype, layout, device, pinned);
}

void record_stream(at::Tensor&, c10::Stream) {}

// The device has no nested tensors: `nn.TransformerEncoder` asks this before it makes one.
bool nested_tensor_from_mask_left_aligned(const at::Tensor&, const at::Tensor&) { return false; }

}  // namespace

void register_kernels(torch::Library& m) {
  m.impl("empty.memory_format", TORCH_FN(empty));
  m.impl("empty_strided", TORCH_FN(empty_strided));
  m.impl("as_strided", TORCH_FN(as_strided));
  m.impl("view", TORCH_FN(view));
  m.impl("_reshape_alias", TORCH_FN(reshape_alias));
  m.impl("view_as_real", TORCH_FN(view_as_real));
  m.impl("view_as_complex", TORCH_FN(view_as_complex));
  m.impl("unfold", TORCH_FN(unfold));
  m.impl("resize_", TORCH_FN(resize_));
  m.impl("set_.source_Storage", TORCH_FN(set_whole_storage));
  m.impl("set_.source_Storage_storage_offset", TORCH_FN(set_storage));
  m.impl("set_.source_Tensor", TORCH_FN(set_tensor));
  m.impl("set_", TORCH_FN(set_nothing));
  m.impl("is_set_to", TORCH_FN(is_set_to));
  m.impl("_copy_from", TORCH_FN(copy_from));
  m.impl("_copy_from_and_resize", TORCH_FN(copy_from_and_resize));
  m.impl("_local_scalar_dense", TORCH_FN(local_scalar_dense));
  m.impl("_has_compatible_shallow_copy_type", TORCH_FN(has_compatible_shallow_copy_type));
  m.impl("_efficientzerotensor", TORCH_FN(zeros_at_once));
  m.impl("arange.start_out", TORCH_FN(arange_out));
  m.impl("_fused_moving_avg_obs_fq_helper", TORCH_FN(observe_and_fake_quantize));
  m.impl("kaiser_window", TORCH_FN(kaiser_window_default));
  m.impl("kaiser_window.periodic", TORCH_FN(kaiser_window_periodic));
  m.impl("kaiser_window.beta", TORCH_FN(kaiser_window));
  m.impl("record_stream", TORCH_FN(record_stream));
  m.impl("_nested_tensor_from_mask_left_aligned", TORCH_FN(nested_tensor_from_mask_left_aligned));
}

}  // namespace genie
