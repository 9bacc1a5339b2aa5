// Shape rules by hand, for operators without a structured shape function. Each follows the CPU
// kernel of the operator (PyTorch's aten/src/ATen/native); the node checks every one of them.
#include "infer.h"

#include <ATen/ExpandUtils.h>
#include <ATen/Functions.h>
#include <ATen/WrapDimUtils.h>
#include <ATen/WrapDimUtilsMulti.h>
#include <ATen/native/TypeProperties.h>
#include <c10/core/WrapDimMinimal.h>

#include <unordered_map>

#include "../torch_version.h"
#include "state.h"

namespace genie {

namespace {

using Args = const c10::IValue*;

// Products and sums that stay at the largest integer instead of passing it: no storage is so large.
int64_t times(int64_t a, int64_t b) {
  int64_t product;
  return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}
int64_t plus(int64_t a, int64_t b) {
  int64_t sum;
  return __builtin_add_overflow(a, b, &sum) ? INT64_MAX : sum;
}

Result make(at::ScalarType dtype, at::IntArrayRef sizes, at::IntArrayRef strides) {
  Result r;
  r.meta.dtype = dtype;
  r.meta.sizes.assign(sizes.begin(), sizes.end());
  r.meta.strides.assign(strides.begin(), strides.end());
  int64_t reach = 1;
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] == 0) {
      reach = 0;
      break;
    }
    reach = plus(reach, times(sizes[i] - 1, strides[i]));
  }
  r.bytes = static_cast<uint64_t>(times(reach, static_cast<int64_t>(c10::elementSize(dtype))));
  return r;
}

Result contiguous(at::ScalarType dtype, at::IntArrayRef sizes) {
  Dims strides(sizes.size());
  int64_t stride = 1;
  for (int64_t i = static_cast<int64_t>(sizes.size()) - 1; i >= 0; --i) {
    strides[i] = stride;
    stride = times(stride, std::max<int64_t>(sizes[i], 1));
  }
  return make(dtype, sizes, strides);
}

Result with_format(at::ScalarType dtype, at::IntArrayRef sizes, at::MemoryFormat format) {
  if (format == at::MemoryFormat::ChannelsLast && sizes.size() == 4)
    return make(dtype, sizes, c10::get_channels_last_strides_2d(sizes));
  if (format == at::MemoryFormat::ChannelsLast3d && sizes.size() == 5)
    return make(dtype, sizes, c10::get_channels_last_strides_3d(sizes));
  return contiguous(dtype, sizes);
}

// As empty_like with preserved format, and as TensorIterator for one input.
Result like(const at::Tensor& t, at::ScalarType dtype) {
  if (t.is_non_overlapping_and_dense()) return make(dtype, t.sizes(), t.strides());
  auto strides = at::infer_dense_strides(t.sizes(), t.strides());
  return make(dtype, t.sizes(), strides);
}
Result like(const at::Tensor& t) { return like(t, t.scalar_type()); }

Result undefined() {
  Result r;
  r.defined = false;
  return r;
}

bool has(const c10::IValue& v) { return v.isTensor() && v.toTensor().defined(); }

bool covered(const at::Tensor& t) { return t.defined() && t.layout() == at::kStrided; }

// Elementwise over several tensors: dense inputs of the result's shape give it their strides.
Result elementwise(std::initializer_list<const at::Tensor*> inputs, at::ScalarType dtype) {
  Dims sizes;
  bool first = true;
  for (auto* t : inputs) {
    if (first)
      sizes.assign(t->sizes().begin(), t->sizes().end());
    else if (!t->sizes().equals(at::IntArrayRef(sizes))) {
      auto both = at::infer_size(sizes, t->sizes());
      sizes.assign(both.begin(), both.end());
    }
    first = false;
  }
  for (auto* t : inputs)
    if (t->sizes().equals(at::IntArrayRef(sizes))) return like(*t, dtype);
  return contiguous(dtype, sizes);
}

bool same(Args a, size_t, Results& out) {
  if (!covered(a[0].toTensor())) return false;
  out.push_back(like(a[0].toTensor()));
  return true;
}

bool safe_softmax(Args a, size_t n, Results& out) {
  int64_t dims = std::max<int64_t>(a[0].toTensor().dim(), 1), dim = a[1].toInt();
  return dim >= -dims && dim < dims && same(a, n, out);
}

// Of complex inputs it is real.
bool magnitude(Args a, size_t n, Results& out) {
  return !a[0].toTensor().is_complex() && same(a, n, out);
}

bool nothing(Args, size_t, Results&) { return true; }

bool same_bool(Args a, size_t, Results& out) {
  out.push_back(like(a[0].toTensor(), at::kBool));
  return true;
}

bool clone(Args a, size_t, Results& out) {
  const auto& t = a[0].toTensor();
  if (!covered(t)) return false;
  auto format = a[1].isNone() ? at::MemoryFormat::Preserve : a[1].toMemoryFormat();
  if (format == at::MemoryFormat::Preserve)
    out.push_back(like(t));
  else
    out.push_back(with_format(t.scalar_type(), t.sizes(), format));
  return true;
}

bool where(Args a, size_t, Results& out) {
  const auto &c = a[0].toTensor(), &x = a[1].toTensor(), &y = a[2].toTensor();
  if (c.scalar_type() != at::kBool && c.scalar_type() != at::kByte) return false;
  out.push_back(elementwise({&c, &x, &y}, at::result_type(x, y)));
  return true;
}

bool masked_fill(Args a, size_t, Results& out) {
  const auto &t = a[0].toTensor(), &mask = a[1].toTensor();
  TORCH_CHECK(mask.scalar_type() == at::kBool,
              "masked_fill only supports boolean masks, but got mask with dtype ", mask.dtype());
  if (has(a[2]) && a[2].toTensor().dim() != 0) return false;
  out.push_back(elementwise({&t, &mask}, t.scalar_type()));
  return true;
}

bool masked_fill_(Args a, size_t, Results&) {
  const auto &t = a[0].toTensor(), &mask = a[1].toTensor();
  TORCH_CHECK(at::is_expandable_to(mask.sizes(), t.sizes()), "The size of mask ", mask.sizes(),
              " must be broadcastable to the size of tensor ", t.sizes());
  return true;
}

bool logical(Args a, size_t, Results& out) {
  const auto &x = a[0].toTensor(), &y = a[1].toTensor();
  out.push_back(elementwise({&x, &y}, at::kBool));
  return true;
}

bool binary(Args a, size_t, Results& out) {
  const auto &x = a[0].toTensor(), &y = a[1].toTensor();
  out.push_back(elementwise({&x, &y}, at::result_type(x, y)));
  return true;
}

bool with_scalar(Args a, size_t, Results& out) {
  const auto& t = a[0].toTensor();
  out.push_back(like(t, at::result_type(t, a[1].toScalar())));
  return true;
}

bool div_scalar(Args a, size_t, Results& out) {
  const auto& t = a[0].toTensor();
  auto dtype = at::result_type(t, a[1].toScalar());
  if (at::isIntegralType(dtype, true)) dtype = c10::typeMetaToScalarType(at::get_default_dtype());
  out.push_back(like(t, dtype));
  return true;
}

bool embedding(Args a, size_t, Results& out) {
  const auto &weight = a[0].toTensor(), &indices = a[1].toTensor();
  TORCH_CHECK(weight.dim() == 2, "'weight' must be 2-D");
  TORCH_CHECK(indices.scalar_type() == at::kLong || indices.scalar_type() == at::kInt,
              "Expected tensor for argument #1 'indices' to have one of the following scalar "
              "types: Long, Int; but got ", indices.toString(), " instead (while checking "
              "arguments for embedding)");
  Dims sizes(indices.sizes().begin(), indices.sizes().end());
  sizes.push_back(weight.size(1));
  out.push_back(contiguous(weight.scalar_type(), sizes));
  return true;
}

bool embedding_dense_backward(Args a, size_t, Results& out) {
  const auto& grad = a[0].toTensor();
  int64_t sizes[] = {a[2].toInt(), grad.size(-1)};
  out.push_back(contiguous(grad.scalar_type(), sizes));
  return true;
}

bool index_select(Args a, size_t, Results& out) {
  const auto &t = a[0].toTensor(), &index = a[2].toTensor();
  if (t.dim() == 0 || index.dim() > 1) return false;
  int64_t dim = at::maybe_wrap_dim(a[1].toInt(), t.dim());
  Dims sizes(t.sizes().begin(), t.sizes().end());
  sizes[dim] = index.numel();
  out.push_back(contiguous(t.scalar_type(), sizes));
  return true;
}

at::ScalarType statistics_dtype(const at::Tensor& input, const c10::IValue& weight) {
  bool mixed = at::isReducedFloatingType(input.scalar_type()) && has(weight) &&
               weight.toTensor().scalar_type() == at::kFloat;
  return mixed ? at::kFloat : input.scalar_type();
}

bool native_layer_norm(Args a, size_t, Results& out) {
  const auto& input = a[0].toTensor();
  auto shape = a[1].toDimVector();
  int64_t axis = input.dim() - static_cast<int64_t>(shape.size());
  if (axis < 0 || shape.empty() || !input.sizes().slice(axis).equals(shape)) return false;
  for (int i : {2, 3})
    if (has(a[i]) && !a[i].toTensor().sizes().equals(shape)) return false;
  Dims stat(input.sizes().begin(), input.sizes().end());
  for (int64_t i = axis; i < input.dim(); ++i) stat[i] = 1;
  auto dtype = statistics_dtype(input, a[2]);
  out.push_back(contiguous(input.scalar_type(), input.sizes()));
  out.push_back(contiguous(dtype, stat));
  out.push_back(contiguous(dtype, stat));
  return true;
}

bool native_layer_norm_backward(Args a, size_t, Results& out) {
  const auto& input = a[1].toTensor();
  auto mask = a[7].toBoolList();
  const auto &weight = a[5], &bias = a[6];
  out.push_back(mask[0] ? contiguous(input.scalar_type(), input.sizes()) : undefined());
  for (int i = 1; i < 3; ++i) {
    const auto& parameter = i == 1 ? weight : bias;
    if (!mask[i]) {
      out.push_back(undefined());
    } else {
      if (!has(parameter)) return false;
      const auto& p = parameter.toTensor();
      out.push_back(contiguous(p.scalar_type(), p.sizes()));
    }
  }
  return true;
}

bool native_group_norm(Args a, size_t, Results& out) {
  const auto& input = a[0].toTensor();
  int64_t stat[] = {a[3].toInt(), a[6].toInt()};
  auto dtype = statistics_dtype(input, a[1]);
  out.push_back(with_format(input.scalar_type(), input.sizes(), input.suggest_memory_format()));
  out.push_back(contiguous(dtype, stat));
  out.push_back(contiguous(dtype, stat));
  return true;
}

bool native_group_norm_backward(Args a, size_t, Results& out) {
  const auto& input = a[1].toTensor();
  auto mask = a[9].toBoolList();
  out.push_back(mask[0] ? with_format(input.scalar_type(), input.sizes(),
                                      input.suggest_memory_format())
                        : undefined());
  for (int i = 1; i < 3; ++i) {
    if (mask[i] && !has(a[4])) return false;
    int64_t channels[] = {a[6].toInt()};
    out.push_back(mask[i] ? contiguous(a[4].toTensor().scalar_type(), channels) : undefined());
  }
  return true;
}

bool native_batch_norm(Args a, size_t, Results& out) {
  const auto& input = a[0].toTensor();
  if (input.dim() < 2 || !at::isFloatingType(input.scalar_type())) return false;
  bool training = a[5].toBool();
  auto dtype = statistics_dtype(input, a[1]);
  out.push_back(with_format(input.scalar_type(), input.sizes(), input.suggest_memory_format()));
  // The CPU kernel keeps no statistics in evaluation.
  int64_t channels[] = {training ? input.size(1) : 0};
  out.push_back(contiguous(dtype, channels));
  out.push_back(contiguous(dtype, channels));
  return tape().device_kind() == 0 || training;
}

bool native_batch_norm_backward(Args a, size_t, Results& out) {
  const auto& input = a[1].toTensor();
  auto mask = a[9].toBoolList();
  if (tape().device_kind() != 0) return false;
  out.push_back(mask[0] ? with_format(input.scalar_type(), input.sizes(),
                                      input.suggest_memory_format())
                        : undefined());
  int64_t channels[] = {input.size(1)};
  auto dtype = has(a[2]) ? a[2].toTensor().scalar_type() : input.scalar_type();
  out.push_back(mask[1] ? contiguous(dtype, channels) : undefined());
  out.push_back(mask[2] ? contiguous(dtype, channels) : undefined());
  return true;
}

at::MemoryFormat conv_format(const at::Tensor& input, const at::Tensor& weight) {
  if (input.scalar_type() == at::kDouble || weight.scalar_type() == at::kDouble)
    return at::MemoryFormat::Contiguous;
  auto of_input = input.suggest_memory_format(), of_weight = weight.suggest_memory_format();
  auto last = input.dim() == 5 ? at::MemoryFormat::ChannelsLast3d : at::MemoryFormat::ChannelsLast;
  return of_input == last || of_weight == last ? last : at::MemoryFormat::Contiguous;
}

int64_t at_or_last(at::IntArrayRef list, int64_t i) {
  return list.size() == 1 ? list[0] : list[i];
}

bool convolution(Args a, size_t, Results& out) {
  const auto &input = a[0].toTensor(), &weight = a[1].toTensor();
  int64_t spatial = weight.dim() - 2;
  if (input.dim() != weight.dim() || spatial < 1 || spatial > 3) return false;
  auto stride = a[3].toDimVector(), padding = a[4].toDimVector(), dilation = a[5].toDimVector();
  bool transposed = a[6].toBool();
  auto output_padding = a[7].toDimVector();
  int64_t groups = a[8].toInt();
  auto wrong = [&](at::IntArrayRef list) {
    return list.size() != 1 && static_cast<int64_t>(list.size()) != spatial;
  };
  // What eager refuses, the node refuses with eager's words: leave it to it.
  if (wrong(stride) || wrong(padding) || wrong(dilation) || wrong(output_padding) || groups <= 0)
    return false;
  int64_t channels = transposed ? weight.size(0) : weight.size(1) * groups;
  if (input.size(1) != channels || weight.size(0) % groups != 0 ||
      input.scalar_type() != weight.scalar_type())
    return false;
  if (has(a[2])) {
    const auto& bias = a[2].toTensor();
    int64_t expect = transposed ? weight.size(1) * groups : weight.size(0);
    if (bias.dim() != 1 || bias.size(0) != expect || bias.scalar_type() != input.scalar_type())
      return false;
  }
  Dims sizes;
  sizes.push_back(input.size(0));
  sizes.push_back(transposed ? weight.size(1) * groups : weight.size(0));
  for (int64_t i = 0; i < spatial; ++i) {
    int64_t s = at_or_last(stride, i), p = at_or_last(padding, i), d = at_or_last(dilation, i);
    if (s <= 0 || p < 0 || d <= 0) return false;
    int64_t o = transposed ? at_or_last(output_padding, i) : 0;
    if (o < 0 || (o > 0 && o >= s && o >= d)) return false;
    int64_t kernel = d * (weight.size(i + 2) - 1) + 1;
    int64_t size = transposed
                       ? (input.size(i + 2) - 1) * s - 2 * p + kernel + o
                       : (input.size(i + 2) + 2 * p - kernel) / s + 1;
    if (size <= 0 || (!transposed && input.size(i + 2) + 2 * p < kernel)) return false;
    sizes.push_back(size);
  }
  out.push_back(with_format(input.scalar_type(), sizes, conv_format(input, weight)));
  return true;
}

bool convolution_backward(Args a, size_t, Results& out) {
  const auto &input = a[1].toTensor(), &weight = a[2].toTensor();
  auto mask = a[10].toBoolList();
  auto format = conv_format(input, weight);
  out.push_back(mask[0] ? with_format(input.scalar_type(), input.sizes(), format) : undefined());
  out.push_back(mask[1] ? with_format(weight.scalar_type(), weight.sizes(), format) : undefined());
  int64_t bias = a[7].toBool() ? weight.size(1) * a[9].toInt() : weight.size(0);
  out.push_back(mask[2] ? contiguous(weight.scalar_type(), {bias}) : undefined());
  return true;
}

bool native_dropout(Args a, size_t, Results& out) {
  const auto& t = a[0].toTensor();
  out.push_back(like(t));
  bool train = a[2].isNone() || a[2].toBool();
  out.push_back(train ? contiguous(at::kBool, t.sizes()) : like(t, at::kBool));
  return true;
}

bool adaptive_avg_pool2d(Args a, size_t, Results& out) {
  const auto& t = a[0].toTensor();
  auto size = a[1].toDimVector();
  if ((t.dim() != 3 && t.dim() != 4) || size.size() != 2) return false;
  Dims sizes(t.sizes().begin(), t.sizes().end());
  sizes[t.dim() - 2] = size[0];
  sizes[t.dim() - 1] = size[1];
  for (int64_t i = 1; i < t.dim(); ++i)
    if (t.size(i) == 0) return false;
  out.push_back(with_format(t.scalar_type(), sizes, t.suggest_memory_format()));
  return true;
}

Dims reduced(const at::Tensor& t, const c10::IValue& dims, bool keep) {
  auto list = dims.isNone() ? c10::DimVector() : dims.toDimVector();
  auto mask = at::dim_list_to_bitset(at::OptionalIntArrayRef(list), t.dim());
  if (list.empty()) mask.flip();
  Dims sizes;
  for (int64_t i = 0; i < t.dim(); ++i) {
    if (!mask[i])
      sizes.push_back(t.size(i));
    else if (keep)
      sizes.push_back(1);
  }
  return sizes;
}

bool variance(Args a, size_t, Results& out) {
  const auto& t = a[0].toTensor();
  if (!at::isFloatingType(t.scalar_type())) return false;
  out.push_back(contiguous(t.scalar_type(), reduced(t, a[1], a[3].toBool())));
  return true;
}

bool variance_mean(Args a, size_t n, Results& out) {
  return variance(a, n, out) && variance(a, n, out);
}

bool to_scalar(Args a, size_t, Results& out) {
  const auto& t = a[0].toTensor();
  if (t.numel() == 0) return false;
  out.push_back(contiguous(t.scalar_type(), {}));
  return true;
}

at::ScalarType sum_dtype(const at::Tensor& t, const c10::IValue& asked) {
  if (!asked.isNone()) return asked.toScalarType();
  return at::isIntegralType(t.scalar_type(), /*includeBool=*/true) ? at::kLong : t.scalar_type();
}

bool sum(Args a, size_t, Results& out) {
  out.push_back(contiguous(sum_dtype(a[0].toTensor(), a[1]), {}));
  return true;
}

bool mean(Args a, size_t, Results& out) {
  auto dtype = a[1].isNone() ? a[0].toTensor().scalar_type() : a[1].toScalarType();
  if (!at::isFloatingType(dtype)) return false;
  out.push_back(contiguous(dtype, {}));
  return true;
}

// Offsets, sizes and maxima as the CPU kernel leaves them: `forward_only` skips what only a
// backward needs.
bool embedding_bag_of(Args a, bool forward_only, Results& out) {
  constexpr int64_t kSum = 0, kMax = 2;
  const auto &weight = a[0].toTensor(), &indices = a[1].toTensor(), &offsets = a[2].toTensor();
  int64_t mode = a[4].toInt();
  bool last = a[7].toBool();
  if (tape().device_kind() != 0 || weight.dim() != 2 || indices.dim() != 1 ||
      offsets.dim() != 1 || mode < kSum || mode > kMax || offsets.size(0) < 1 + last)
    return false;
  int64_t width = weight.size(1), bags = offsets.size(0) - last;
  bool fast = mode == kSum && weight.scalar_type() != at::kDouble && weight.stride(1) == 1 &&
              a[8].toInt() < 0 && (!has(a[6]) || a[6].toTensor().stride(0) == 1);
  auto dtype = at::promoteTypes(indices.scalar_type(), offsets.scalar_type());
  int64_t sized = forward_only && mode == kSum ? offsets.size(0) : bags;
  out.push_back(contiguous(weight.scalar_type(), {bags, width}));
  out.push_back(contiguous(dtype, {fast ? 0 : indices.size(0)}));
  out.push_back(contiguous(dtype, {sized}));
  out.push_back(mode == kMax ? contiguous(dtype, {bags, width}) : contiguous(dtype, {sized}));
  return true;
}

bool embedding_bag(Args a, size_t, Results& out) { return embedding_bag_of(a, false, out); }

bool embedding_bag_forward_only(Args a, size_t, Results& out) {
  return embedding_bag_of(a, true, out);
}

// The fused layer keeps the shape of what it is given.
bool transformer_layer(Args a, size_t, Results& out) {
  const auto& t = a[0].toTensor();
  if (t.dim() != 3 || a[1].toInt() != t.size(2)) return false;
  out.push_back(contiguous(t.scalar_type(), t.sizes()));
  return true;
}

bool repeat(Args a, size_t, Results& out) {
  const auto& t = a[0].toTensor();
  auto repeats = a[1].toDimVector();
  int64_t extra = static_cast<int64_t>(repeats.size()) - t.dim();
  if (extra < 0) return false;
  Dims sizes;
  for (size_t i = 0; i < repeats.size(); ++i) {
    if (repeats[i] < 0) return false;
    int64_t at = static_cast<int64_t>(i) - extra;
    sizes.push_back(times(repeats[i], at < 0 ? 1 : t.size(at)));
  }
  out.push_back(contiguous(t.scalar_type(), sizes));
  return true;
}

bool stack(Args a, size_t, Results& out) {
  if (!a[0].isTensorList()) return false;
  auto tensors = a[0].toTensorVector();
  if (tensors.empty()) return false;
  for (const auto& t : tensors)
    if (!t.sizes().equals(tensors[0].sizes()) || !covered(t)) return false;
  Dims sizes(tensors[0].sizes().begin(), tensors[0].sizes().end());
  sizes.insert(sizes.begin() + at::maybe_wrap_dim(a[1].toInt(), tensors[0].dim() + 1),
               static_cast<int64_t>(tensors.size()));
  at::native::ResultTypeState dtype{};
  for (const auto& t : tensors) dtype = at::native::update_result_type_state(t, dtype);
  out.push_back(contiguous(at::native::result_type(dtype), sizes));
  return true;
}

bool constant_pad_nd(Args a, size_t, Results& out) {
  const auto& t = a[0].toTensor();
  auto pad = a[1].toDimVector();
  if (pad.size() % 2 != 0 || static_cast<int64_t>(pad.size()) > 2 * t.dim()) return false;
  Dims sizes(t.sizes().begin(), t.sizes().end());
  for (size_t i = 0; i < pad.size() / 2; ++i) {
    auto& size = sizes[t.dim() - 1 - static_cast<int64_t>(i)];
    size = plus(size, plus(pad[2 * i], pad[2 * i + 1]));
    if (size < 0) return false;
  }
  out.push_back(with_format(t.scalar_type(), sizes, t.suggest_memory_format()));
  return true;
}

// zeros of the original size, for the backward of slices and selections.
bool zeros_of_size(Args a, size_t, Results& out) {
  out.push_back(contiguous(a[0].toTensor().scalar_type(), a[1].toDimVector()));
  return true;
}

bool reduction_loss(Args a, size_t, Results& out, const at::Tensor& target, int64_t reduction) {
  const auto& input = a[0].toTensor();
  if (reduction == at::Reduction::None)
    out.push_back(elementwise({&input, &target}, at::result_type(input, target)));
  else
    out.push_back(contiguous(input.scalar_type(), {}));
  return true;
}

bool bce(Args a, size_t n, Results& out) {
  if (!a[0].toTensor().sizes().equals(a[1].toTensor().sizes())) return false;
  return reduction_loss(a, n, out, a[1].toTensor(), a[3].toInt());
}

bool bce_with_logits(Args a, size_t n, Results& out) {
  if (!a[0].toTensor().sizes().equals(a[1].toTensor().sizes())) return false;
  return reduction_loss(a, n, out, a[1].toTensor(), a[4].toInt());
}

bool bce_backward(Args a, size_t, Results& out) {
  out.push_back(like(a[1].toTensor()));
  return true;
}

bool same_as_second(Args a, size_t, Results& out) {
  out.push_back(like(a[1].toTensor()));
  return true;
}

// (batch, heads, length, width) laid out with heads next to width, as CPU flash attention does.
Result heads_inside(at::ScalarType dtype, int64_t b, int64_t h, int64_t l, int64_t e) {
  return make(dtype, {b, h, l, e}, {l * h * e, e, h * e, 1});
}

// Whether the result lies as the query does: PyTorch's versions differ, so its own kernel is asked once.
bool flash_lies_as_its_query() {
#if GENIE_TORCH_AT_LEAST(2, 3)
  static const bool does = [] {
    at::NoGradGuard no_grad;
    auto query = at::ones({1, 2, 2, 8}, at::TensorOptions(at::kFloat).device(at::kCPU));
    return std::get<0>(at::_scaled_dot_product_flash_attention_for_cpu(query, query, query))
        .is_contiguous();
  }();
  return does;
#else
  return false;
#endif
}

Result flash_result(const at::Tensor& q, const at::Tensor& v) {
  if (q.size(-1) == v.size(-1) && flash_lies_as_its_query()) return like(q);
  return heads_inside(q.scalar_type(), q.size(0), q.size(1), q.size(2), v.size(-1));
}

bool attention(Args a, size_t n, Results& out) {
  const auto &q = a[0].toTensor(), &k = a[1].toTensor(), &v = a[2].toTensor();
  if (tape().device_kind() != 0 || q.dim() < 2 || k.dim() != q.dim() || v.dim() != q.dim())
    return false;
  if (k.scalar_type() != q.scalar_type() || v.scalar_type() != q.scalar_type()) return false;
  bool gqa = n > 7 && a[7].toBool();
  double dropout = a[4].toDouble();
  auto mask = has(a[3]) ? std::optional<at::Tensor>(a[3].toTensor()) : std::nullopt;
  if (mask && mask->scalar_type() != at::kBool && mask->scalar_type() != q.scalar_type()) return false;
  auto scale = a[6].isNone() ? std::nullopt : std::optional<double>(a[6].toDouble());
  int64_t choice = attention_choice(q, k, v, mask, dropout, a[5].toBool(), scale, gqa);
  Dims sizes(q.sizes().begin(), q.sizes().end());
  sizes.back() = v.size(-1);
  if (choice == 1) {
    out.push_back(flash_result(q, v));
    return true;
  }
  if (choice != 0 || gqa) return false;
  // As matmul broadcasts; what it would refuse is the node's to judge.
  auto batch = at::infer_size(q.sizes().slice(0, q.dim() - 2), k.sizes().slice(0, q.dim() - 2));
  batch = at::infer_size(batch, v.sizes().slice(0, q.dim() - 2));
  for (int64_t i = 0; i < q.dim() - 2; ++i) sizes[i] = batch[i];
  if (q.size(-1) != k.size(-1) || k.size(-2) != v.size(-2)) return false;
  if (mask && !at::is_expandable_to(mask->sizes(), [&] {
        c10::DimVector weights(sizes.begin(), sizes.end());
        weights.back() = k.size(-2);
        return weights;
      }()))
    return false;
  out.push_back(contiguous(q.scalar_type(), sizes));
  return true;
}

bool flash_for_cpu(Args a, size_t, Results& out) {
  const auto &q = a[0].toTensor(), &v = a[2].toTensor();
  if (q.dim() != 4) return false;
  auto dtype = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  int64_t b = q.size(0), h = q.size(1), l = q.size(2);
  out.push_back(flash_result(q, v));
  out.push_back(make(dtype, {b, h, l}, {l * h, 1, h}));
  return true;
}

bool flash_for_cpu_backward(Args a, size_t, Results& out) {
  for (int i = 1; i < 4; ++i) {
    const auto& t = a[i].toTensor();
    if (t.dim() != 4) return false;
    out.push_back(heads_inside(t.scalar_type(), t.size(0), t.size(1), t.size(2), t.size(3)));
  }
  return true;
}

bool floating_like_inputs(Args a, size_t, Results& out) {
  if (!a[0].isTensorList()) return false;
  for (const at::Tensor& t : a[0].toTensorVector()) {
    if (!at::isFloatingType(t.scalar_type()) || !covered(t)) return false;
    out.push_back(like(t));
  }
  return true;
}

bool foreach_with_scalar(Args a, size_t n, Results& out) {
  if (a[1].isScalar() && a[1].toScalar().isComplex()) return false;
  return floating_like_inputs(a, n, out);
}

bool foreach_with_list(Args a, size_t n, Results& out) {
  if (!a[0].isTensorList() || !a[1].isTensorList()) return false;
  auto x = a[0].toTensorVector(), y = a[1].toTensorVector();
  if (x.size() != y.size()) return false;
  for (size_t i = 0; i < x.size(); ++i)
    if (x[i].scalar_type() != y[i].scalar_type() || !x[i].sizes().equals(y[i].sizes()))
      return false;
  return floating_like_inputs(a, n, out);
}

bool multinomial(Args a, size_t, Results& out) {
  const auto& t = a[0].toTensor();
  if ((t.dim() != 1 && t.dim() != 2) || a[1].toInt() <= 0) return false;
  if (!a[2].toBool() && a[1].toInt() > t.size(-1)) return false;  // eager refuses it at the call
  Dims sizes;
  if (t.dim() == 2) sizes.push_back(t.size(0));
  sizes.push_back(a[1].toInt());
  out.push_back(contiguous(at::kLong, sizes));
  return true;
}

const std::unordered_map<std::string, Rule>& rules() {
  static const std::unordered_map<std::string, Rule> table = [] {
    std::unordered_map<std::string, Rule> t;
    for (const char* name :
         {"relu", "hardtanh", "hardswish", "selu", "celu", "bernoulli", "bernoulli.p", "hardsigmoid",
          "positive", "alias_copy", "detach_copy", "native_dropout_backward"})
      t[std::string("aten::") + name] = same;
    t["aten::abs"] = magnitude;
    for (const char* name : {"logical_not", "isnan"}) t[std::string("aten::") + name] = same_bool;
    for (const char* name : {"logical_and", "logical_or", "logical_xor"})
      t[std::string("aten::") + name] = logical;
    for (const char* name :
         {"add.Scalar", "sub.Scalar", "mul.Scalar", "rsub.Scalar", "remainder.Scalar"})
      t[std::string("aten::") + name] = with_scalar;
    // These write only their arguments and accept any value for them.
    for (const char* name :
         {"zero_", "fill_.Scalar", "fill_.Tensor", "normal_", "uniform_", "random_",
          "random_.to", "random_.from", "bernoulli_.float", "exponential_", "geometric_",
          "cauchy_", "log_normal_", "copy_", "arange.start_out", "relu_", "hardtanh_", "hardswish_"})
      t[std::string("aten::") + name] = nothing;
    t["aten::_safe_softmax"] = safe_softmax;
    t["aten::masked_fill_.Scalar"] = masked_fill_;
    t["aten::masked_fill_.Tensor"] = masked_fill_;
    t["aten::masked_fill.Scalar"] = masked_fill;
    t["aten::masked_fill.Tensor"] = masked_fill;
    t["aten::clone"] = clone;
    t["aten::where.self"] = where;
    t["aten::rsub.Tensor"] = binary;
    t["aten::div.Scalar"] = div_scalar;
    t["aten::embedding"] = embedding;
    t["aten::embedding_dense_backward"] = embedding_dense_backward;
    t["aten::index_select"] = index_select;
    t["aten::native_layer_norm"] = native_layer_norm;
    t["aten::native_layer_norm_backward"] = native_layer_norm_backward;
    t["aten::native_group_norm"] = native_group_norm;
    t["aten::native_group_norm_backward"] = native_group_norm_backward;
    t["aten::native_batch_norm"] = native_batch_norm;
    t["aten::native_batch_norm_backward"] = native_batch_norm_backward;
    t["aten::convolution"] = convolution;
    t["aten::convolution_backward"] = convolution_backward;
    t["aten::native_dropout"] = native_dropout;
    t["aten::_adaptive_avg_pool2d"] = adaptive_avg_pool2d;
    t["aten::_adaptive_avg_pool2d_backward"] = same_as_second;
    t["aten::var.correction"] = variance;
    t["aten::std.correction"] = variance;
    t["aten::var_mean.correction"] = variance_mean;
    t["aten::std_mean.correction"] = variance_mean;
    t["aten::max"] = to_scalar;
    t["aten::min"] = to_scalar;
    t["aten::sum"] = sum;
    t["aten::mean"] = mean;
    t["aten::_embedding_bag"] = embedding_bag;
    t["aten::_embedding_bag_forward_only"] = embedding_bag_forward_only;
    t["aten::_transformer_encoder_layer_fwd"] = transformer_layer;
    t["aten::repeat"] = repeat;
    t["aten::stack"] = stack;
    t["aten::constant_pad_nd"] = constant_pad_nd;
    t["aten::slice_backward"] = zeros_of_size;
    t["aten::select_backward"] = zeros_of_size;
    t["aten::diagonal_backward"] = zeros_of_size;
    t["aten::binary_cross_entropy"] = bce;
    t["aten::binary_cross_entropy_backward"] = bce_backward;
    t["aten::binary_cross_entropy_with_logits"] = bce_with_logits;
    t["aten::scaled_dot_product_attention"] = attention;
    t["aten::_scaled_dot_product_flash_attention_for_cpu"] = flash_for_cpu;
    t["aten::_scaled_dot_product_flash_attention_for_cpu_backward"] = flash_for_cpu_backward;
    t["aten::multinomial"] = multinomial;
    for (const char* name : {"sqrt", "abs", "neg", "exp", "rsqrt", "reciprocal"})
      t[std::string("aten::_foreach_") + name] = floating_like_inputs;
    for (const char* name : {"add", "sub", "mul", "div"}) {
      t[std::string("aten::_foreach_") + name + ".Scalar"] = foreach_with_scalar;
      t[std::string("aten::_foreach_") + name + ".List"] = foreach_with_list;
    }
    return t;
  }();
  return table;
}

}  // namespace

Rule rule_for(const std::string& name) {
  auto found = rules().find(name);
  if (found != rules().end()) return found->second;
  // In-place foreach and fused optimizers return nothing and change no shape.
  bool foreach = name.rfind("aten::_foreach_", 0) == 0 || name.rfind("aten::_fused_", 0) == 0;
  auto dot = name.find('.');
  auto base = name.substr(0, dot);
  return foreach && base.back() == '_' ? nothing : nullptr;
}

}  // namespace genie
