#include "doubts.h"

#include <ATen/ExpandUtils.h>

#include <cmath>
#include <limits>
#include <unordered_map>

#include "names.h"

namespace genie {

namespace {

using Args = const c10::IValue*;
using Dims = c10::DimVector;

// Whether the first argument, which is added to a product, is not of the product's shape.
bool unlike(const at::Tensor& added, at::IntArrayRef product) {
  return !at::is_expandable_to(added.sizes(), product);
}

bool addmm(Args a) {
  const auto &x = a[1].toTensor(), &y = a[2].toTensor();
  return x.dim() != 2 || y.dim() != 2 || unlike(a[0].toTensor(), {x.size(0), y.size(1)});
}

bool addmv(Args a) {
  const auto& x = a[1].toTensor();
  return x.dim() != 2 || unlike(a[0].toTensor(), {x.size(0)});
}

bool addr(Args a) {
  const auto &x = a[1].toTensor(), &y = a[2].toTensor();
  return x.dim() != 1 || y.dim() != 1 || unlike(a[0].toTensor(), {x.size(0), y.size(0)});
}

bool baddbmm(Args a) {
  const auto &x = a[1].toTensor(), &y = a[2].toTensor();
  return x.dim() != 3 || y.dim() != 3 ||
         unlike(a[0].toTensor(), {x.size(0), x.size(1), y.size(2)});
}

bool addbmm(Args a) {
  const auto &x = a[1].toTensor(), &y = a[2].toTensor();
  return x.dim() != 3 || y.dim() != 3 || unlike(a[0].toTensor(), {x.size(1), y.size(2)});
}

// Whether the values written do not have the shape of what the indices choose. How many elements a
// mask chooses is known to the data alone.
bool index_put(Args a) {
  const auto& self = a[0].toTensor();
  Dims chosen, rest;
  int64_t at = 0, first = -1, last = -1;
  bool masks = false;
  for (const auto& index : a[1].toListRef()) {
    int64_t here = at++;
    if (!index.isTensor() || !index.toTensor().defined()) continue;
    const auto& t = index.toTensor();
    if (t.scalar_type() == at::kBool || t.scalar_type() == at::kByte) {
      for (int64_t i = 0; i < t.dim(); ++i)
        if (here + i >= self.dim() || t.size(i) != self.size(here + i)) return true;
      masks = true;
      at += t.dim() - 1;
      continue;
    }
    if (!at::isIntegralType(t.scalar_type(), false)) return true;
    if (first < 0) {
      chosen.assign(t.sizes().begin(), t.sizes().end());
    } else {
      for (size_t i = 0; i < std::min<size_t>(chosen.size(), t.dim()); ++i) {
        auto x = chosen[chosen.size() - 1 - i], y = t.size(t.dim() - 1 - static_cast<int64_t>(i));
        if (x != y && x != 1 && y != 1) return true;
      }
      auto both = at::infer_size_dimvector(chosen, t.sizes());
      chosen.assign(both.begin(), both.end());
    }
    if (last >= 0 && here != last + 1) first = 0;  // apart from each other: they come first
    if (first < 0) first = here;
    last = here;
  }
  if (at > self.dim()) return true;
  const auto& values = a[2].toTensor();
  if (masks) {
    // Of the dimensions after those of the indices only.
    for (int64_t i = 1; i <= std::min(self.dim() - at, values.dim()); ++i)
      if (values.size(-i) != 1 && values.size(-i) != self.size(-i)) return true;
    return false;
  }
  if (first < 0) return false;
  // The dimensions that no index names stay in their places around those of the indices.
  int64_t before = 0;
  at = 0;
  for (const auto& index : a[1].toListRef()) {
    bool named = index.isTensor() && index.toTensor().defined();
    if (!named) rest.push_back(self.size(at));
    if (!named && at < first) ++before;
    ++at;
  }
  for (; at < self.dim(); ++at) rest.push_back(self.size(at));
  rest.insert(rest.begin() + before, chosen.begin(), chosen.end());
  return unlike(values, rest);
}

bool put(Args a) { return a[1].toTensor().numel() != a[2].toTensor().numel(); }

bool bools(Args a) {
  for (int i = 0; i < 2; ++i)
    if (a[i].isTensor() && a[i].toTensor().scalar_type() == at::kBool) return true;
  return a[1].isBool();
}

bool other_sizes(Args a) { return !a[0].toTensor().sizes().equals(a[1].toTensor().sizes()); }

bool nothing_below(Args a) { return a[1].toInt() <= 0; }
bool nothing_between(Args a) { return !a[2].isNone() && a[1].toInt() >= a[2].toInt(); }

// Numbers, which no template holds: asked at each call.

template <typename T>
bool leaves(double value) {
  using limits = std::numeric_limits<T>;
  if (std::isinf(value) || std::isnan(value)) return !limits::has_infinity;
  return value < static_cast<double>(limits::lowest()) ||
         value > static_cast<double>(limits::max());
}

bool cannot_hold(const at::Tensor& t, const c10::IValue& v) {
  if (!v.isScalar()) return false;
  auto number = v.toScalar();
  if (number.isComplex()) return !t.is_complex();
  if (number.isBoolean()) return false;
  double value = number.toDouble();
  switch (t.scalar_type()) {
    case at::kByte: return leaves<uint8_t>(value < 0 ? value + 256 : value);  // negative ones wrap
    case at::kChar: return leaves<int8_t>(value);
    case at::kShort: return leaves<int16_t>(value);
    case at::kInt: return leaves<int32_t>(value);
    case at::kLong: return leaves<int64_t>(value);
    case at::kHalf: return leaves<at::Half>(value);
    case at::kBFloat16: return leaves<at::BFloat16>(value);
    case at::kFloat: return leaves<float>(value);
    default: return false;
  }
}

bool fill(Args a) { return cannot_hold(a[0].toTensor(), a[1]); }
bool masked_fill(Args a) { return cannot_hold(a[0].toTensor(), a[2]); }

bool divided_by_zero(Args a) {
  if (at::isFloatingType(a[0].toTensor().scalar_type())) return false;
  if (a[1].isScalar()) return a[1].toScalar().equal(0);
  // A number that became a tensor on its way here.
  const auto& by = a[1].toTensor();
  return by.device().is_cpu() && by.dim() == 0 && by.item().equal(0);
}

template <int At>
bool negative(Args a) {
  return a[At].isScalar() && a[At].toScalar().toDouble() < 0;
}

template <int At>
bool not_positive(Args a) {
  return a[At].isScalar() && a[At].toScalar().toDouble() <= 0;
}

bool zero_alpha(Args a) { return a[1].isScalar() && a[1].toScalar().equal(0); }

}  // namespace

Doubt doubt_of_numbers_for(const std::string& name) {
  static const std::unordered_map<std::string, Doubt> table{
      {"aten::remainder.Tensor", divided_by_zero},
      {"aten::remainder_.Tensor", divided_by_zero},
      {"aten::fmod.Tensor", divided_by_zero},
      {"aten::fmod_.Tensor", divided_by_zero},
      {"aten::floor_divide", divided_by_zero},
      {"aten::floor_divide_.Tensor", divided_by_zero},
      {"aten::div.Tensor_mode", divided_by_zero},
      {"aten::fill_.Scalar", fill},
      {"aten::masked_fill.Scalar", masked_fill},
      {"aten::masked_fill_.Scalar", masked_fill},
      {"aten::remainder.Scalar", divided_by_zero},
      {"aten::remainder_.Scalar", divided_by_zero},
      {"aten::fmod.Scalar", divided_by_zero},
      {"aten::fmod_.Scalar", divided_by_zero},
      {"aten::floor_divide.Scalar", divided_by_zero},
      {"aten::floor_divide_.Scalar", divided_by_zero},
      {"aten::div.Scalar_mode", divided_by_zero},
      {"aten::celu", zero_alpha},
      {"aten::celu_", zero_alpha},
      {"aten::huber_loss", not_positive<3>},
      {"aten::smooth_l1_loss", negative<3>},
      {"aten::softshrink", negative<1>},
      {"aten::_cdist_forward", negative<2>},
  };
  auto found = table.find(name);
  return found == table.end() ? nullptr : found->second;
}

bool is_picky(const std::string& name) {
  return starts_with_any(name, {"aten::cauchy_", "aten::exponential_", "aten::geometric_",
                                "aten::log_normal_", "aten::normal_", "aten::uniform_",
                                "aten::bernoulli_", "aten::gelu", "aten::renorm",
                                "aten::as_strided_copy", "aten::as_strided_scatter",
                                "aten::select_scatter", "aten::slice_scatter", "aten::linalg_lu",
                                "aten::_linalg_svd", "aten::_unsafe_masked_index_put_accumulate"});
}

bool takes_masks(const std::string& name) {
  return starts_with_any(name, {"aten::where", "aten::masked_", "aten::index", "aten::_index",
                                "aten::_unsafe_index", "aten::nonzero",
                                "aten::native_dropout_backward", "aten::_scaled_dot_product",
                                "aten::scaled_dot_product", "aten::copy_", "aten::_to_copy",
                                "aten::cat"});
}

bool takes_indices(const std::string& name) {
  return starts_with_any(name, {"aten::embedding", "aten::_embedding", "aten::gather",
                                "aten::scatter", "aten::index", "aten::_index",
                                "aten::_unsafe_index", "aten::take", "aten::nll_loss",
                                "aten::max_pool", "aten::max_unpool", "aten::adaptive_max_pool",
                                "aten::value_selecting_reduction_backward", "aten::copy_",
                                "aten::_to_copy", "aten::cat", "aten::_fused_adam",
                                "aten::_foreach_"});
}

Doubt doubt_for(const std::string& name) {
  static const std::unordered_map<std::string, Doubt> table = [] {
    std::unordered_map<std::string, Doubt> t;
    for (const char* form : {"", "_", ".out"}) {
      t[std::string("aten::addmm") + form] = addmm;
      t[std::string("aten::addmv") + form] = addmv;
      t[std::string("aten::addr") + form] = addr;
      t[std::string("aten::addbmm") + form] = addbmm;
      t[std::string("aten::baddbmm") + form] = baddbmm;
      t[std::string("aten::index_put") + form] = index_put;
      t[std::string("aten::put") + form] = put;
    }
    for (const char* form : {"", ".out"})
      t[std::string("aten::_addmm_activation") + form] = addmm;
    t["aten::_index_put_impl_"] = index_put;
    t["aten::_unsafe_index_put"] = index_put;
    t["aten::rsub.Tensor"] = bools;
    t["aten::rsub.Scalar"] = bools;
    t["aten::native_dropout_backward"] = other_sizes;
    t["aten::random_.to"] = nothing_below;
    t["aten::random_.from"] = nothing_between;
    return t;
  }();
  auto found = table.find(name);
  return found == table.end() ? nullptr : found->second;
}

}  // namespace genie
