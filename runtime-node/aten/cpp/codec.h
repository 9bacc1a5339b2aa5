// Encoded operator arguments. The format is genie_wire's `value` module; see there.
#pragma once
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "wire_limits.h"

namespace genie {

enum Tag : uint8_t {
  kNone = 0,
  kTensor = 1,
  kUndefinedTensor = 2,
  kScalarTensor = 3,
  kInt = 4,
  kDouble = 5,
  kBool = 6,
  kComplex = 7,
  kString = 8,
  kVaryingDouble = 9,
  kVaryingInt = 10,
  kVaryingComplex = 11,
  kDevice = 12,
  kGenerator = 13,
  kList = 14,
  kIntList = 15,
};

enum OutputKind : uint8_t { kOutputUndefined = 0, kOutputNew = 1, kOutputAlias = 2 };

constexpr uint8_t kCpuDevice = 255;

// The errors of genie_wire::ErrorCode.
enum ErrorCode : uint8_t {
  kRuntime = 1,
  kOutOfMemory = 2,
  kNodeLost = 3,
  kIndex = 4,
  kValue = 5,
  kType = 6,
  kNotImplemented = 7,
  kLinalg = 8,
  kTemplateMismatch = 9,
  kProtocol = 10,
  kWeightMissing = 11,
};

// Bytes that are not what the format says; becomes kProtocol.
struct CodecError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A growing byte buffer that is reused from one operator to the next.
class Writer {
 public:
  void clear() { size_ = 0; }
  const uint8_t* data() const { return bytes_.data(); }
  size_t size() const { return size_; }
  std::string_view view() const {
    return {reinterpret_cast<const char*>(bytes_.data()), size_};
  }

  void u8(uint8_t value) {
    reserve(1);
    bytes_[size_++] = value;
  }
  void varint(uint64_t value) {
    reserve(10);
    while (value >= 0x80) {
      bytes_[size_++] = static_cast<uint8_t>(value) | 0x80;
      value >>= 7;
    }
    bytes_[size_++] = static_cast<uint8_t>(value);
  }
  void zigzag(int64_t value) {
    varint((static_cast<uint64_t>(value) << 1) ^ static_cast<uint64_t>(value >> 63));
  }
  void raw(const void* bytes, size_t len) {
    reserve(len);
    memcpy(bytes_.data() + size_, bytes, len);
    size_ += len;
  }
  void u64(uint64_t value) { raw(&value, sizeof value); }
  void string(std::string_view text) {
    varint(text.size());
    raw(text.data(), text.size());
  }

 private:
  void reserve(size_t more) {
    if (size_ + more > bytes_.size()) bytes_.resize((size_ + more) * 2 + 256);
  }
  std::vector<uint8_t> bytes_;
  size_t size_ = 0;
};

// Reads untrusted bytes; never past their end.
class Reader {
 public:
  Reader(const uint8_t* bytes, size_t len) : at_(bytes), end_(bytes + len) {}
  bool done() const { return at_ == end_; }

  uint8_t u8() {
    need(1);
    return *at_++;
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      uint8_t byte = u8();
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (!(byte & 0x80)) return value;
    }
    throw CodecError("integer above 64 bits");
  }
  int64_t zigzag() {
    uint64_t raw = varint();
    return static_cast<int64_t>(raw >> 1) ^ -static_cast<int64_t>(raw & 1);
  }
  uint64_t bounded(uint64_t max) {
    uint64_t value = varint();
    if (value > max) throw CodecError("length above its limit");
    return value;
  }
  uint64_t u64() {
    need(8);
    uint64_t value;
    memcpy(&value, at_, 8);
    at_ += 8;
    return value;
  }
  double f64() {
    uint64_t bits = u64();
    double value;
    memcpy(&value, &bits, 8);
    return value;
  }
  std::string string(uint64_t max) {
    uint64_t len = bounded(max);
    need(len);
    std::string text(reinterpret_cast<const char*>(at_), len);
    at_ += len;
    return text;
  }

 private:
  void need(uint64_t len) const {
    if (static_cast<uint64_t>(end_ - at_) < len) throw CodecError("truncated");
  }
  const uint8_t* at_;
  const uint8_t* end_;
};

using Dims = c10::SmallVector<int64_t, 6>;

// Geometry of a tensor over a storage, in elements.
struct Meta {
  at::ScalarType dtype = at::kFloat;
  int64_t offset = 0;
  Dims sizes;
  Dims strides;
};

inline bool row_major(at::IntArrayRef sizes, at::IntArrayRef strides) {
  int64_t expect = 1;
  for (int64_t i = static_cast<int64_t>(sizes.size()) - 1; i >= 0; --i) {
    if (strides[i] != expect) return false;
    expect *= std::max<int64_t>(sizes[i], 1);
  }
  return true;
}

inline void put_meta(Writer& out, at::ScalarType dtype, int64_t offset, at::IntArrayRef sizes,
                     at::IntArrayRef strides) {
  bool contiguous = row_major(sizes, strides);
  out.u8(static_cast<uint8_t>(dtype));
  out.u8(contiguous);
  out.varint(offset);
  out.varint(sizes.size());
  for (int64_t size : sizes) out.varint(size);
  if (!contiguous)
    for (int64_t stride : strides) out.varint(stride);
}

inline void put_meta(Writer& out, const at::Tensor& t) {
  put_meta(out, t.scalar_type(), t.storage_offset(), t.sizes(), t.strides());
}

inline Meta get_meta(Reader& in) {
  Meta meta;
  uint8_t dtype = in.u8();
  if (dtype >= static_cast<uint8_t>(at::ScalarType::Undefined)) throw CodecError("unknown dtype");
  meta.dtype = static_cast<at::ScalarType>(dtype);
  bool contiguous = in.u8() != 0;
  meta.offset = static_cast<int64_t>(in.bounded(INT64_MAX));
  uint64_t dims = in.bounded(kDimsMax);
  meta.sizes.resize(dims);
  meta.strides.resize(dims);
  for (uint64_t i = 0; i < dims; ++i) meta.sizes[i] = static_cast<int64_t>(in.bounded(INT64_MAX));
  if (contiguous) {
    int64_t stride = 1;
    for (int64_t i = static_cast<int64_t>(dims) - 1; i >= 0; --i) {
      meta.strides[i] = stride;
      if (__builtin_mul_overflow(stride, std::max<int64_t>(meta.sizes[i], 1), &stride))
        throw CodecError("tensor too large");
    }
  } else {
    for (uint64_t i = 0; i < dims; ++i)
      meta.strides[i] = static_cast<int64_t>(in.bounded(INT64_MAX));
  }
  return meta;
}

// Words of a record's scalars that one value of this type takes.
inline uint32_t scalar_words(at::ScalarType dtype) { return at::isComplexType(dtype) ? 2 : 1; }

// FNV-1a over "name.overload\0schema": how client and node agree on what an operator is.
inline uint64_t schema_hash(const c10::FunctionSchema& schema) {
  std::string text = toString(schema.operator_name());
  text.push_back('\0');
  text += toString(schema);
  uint64_t hash = 0xcbf29ce484222325ull;
  for (unsigned char c : text) hash = (hash ^ c) * 0x100000001b3ull;
  return hash;
}

// Whether the operator writes its argument `index`. Some update their arguments although their
// schemas do not say so.
inline bool writes_argument(const c10::FunctionSchema& schema, size_t index) {
  const auto* alias = schema.arguments()[index].alias_info();
  if (alias && alias->isWrite()) return true;
  const auto& name = schema.name();
  if (name == "aten::native_batch_norm" || name == "aten::cudnn_batch_norm" ||
      name == "aten::miopen_batch_norm" || name == "aten::_batch_norm_impl_index")
    return index == 3 || index == 4;  // the running statistics
  if (name.rfind("aten::rrelu_with_noise", 0) == 0) return index == 1;
  return false;
}

inline std::string op_name(const c10::OperatorHandle& op) { return toString(op.operator_name()); }

}  // namespace genie
