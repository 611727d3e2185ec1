// CUDA's vector types and device functions on the CPU, without the toolkit's headers. Part of cuda_cpu.h.
//
// Missing on purpose: what sm_75 does not have (__reduce_*_sync), and the approximate functions (__expf, __logf,
// __fdividef, rsqrtf): their bits cannot be had here, so a kernel that needs the twin's numbers must not call them.
#pragma once
#include <limits.h>
#include <math.h>
#include <string.h>

#define EMU_VECTORS(T, name, a2, a4)                                                                    \
    struct name##1 { T x; };                                                                            \
    struct alignas(a2) name##2 { T x, y; };                                                             \
    struct name##3 { T x, y, z; };                                                                      \
    struct alignas(a4) name##4 { T x, y, z, w; };                                                       \
    inline name##1 make_##name##1(T x) { return {x}; }                                                  \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                          \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                                  \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMU_VECTORS(signed char, char, 2, 4)
EMU_VECTORS(unsigned char, uchar, 2, 4)
EMU_VECTORS(short, short, 4, 8)
EMU_VECTORS(unsigned short, ushort, 4, 8)
EMU_VECTORS(int, int, 8, 16)
EMU_VECTORS(unsigned int, uint, 8, 16)
EMU_VECTORS(long long, longlong, 16, 16)
EMU_VECTORS(unsigned long long, ulonglong, 16, 16)
EMU_VECTORS(float, float, 8, 16)
EMU_VECTORS(double, double, 16, 16)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emu {
template <class To, class From> To bits(From value) {
    static_assert(sizeof(To) == sizeof(From), "");
    To result;
    memcpy(&result, &value, sizeof result);
    return result;
}
// As the hardware converts: clamped to the integers, NaN to 0 (to the lowest of 64 bits).
template <class I, class F> I convert(F whole) {
    constexpr I low = I(-1) < 0 ? I(1ull << (sizeof(I) * 8 - 1)) : 0;
    constexpr I high = I(~low);
    if (whole != whole) return sizeof(I) == 8 ? I(1ull << 63) : 0;
    if (whole <= F(low)) return low;
    return whole >= F(high) ? high : I(whole);  // F(high) may be high + 1: then it is the first that does not fit
}
}  // namespace emu

// Each operation is rounded for itself: emulator.py forbids the compiler to contract any.
#define EMU_ARITHMETIC(T, prefix, fused)                                                                \
    inline T __##prefix##mul_rn(T a, T b) { return a * b; }                                               \
    inline T __##prefix##add_rn(T a, T b) { return a + b; }                                               \
    inline T __##prefix##sub_rn(T a, T b) { return a - b; }                                               \
    inline T __##prefix##div_rn(T a, T b) { return a / b; }                                               \
    inline T __##prefix##rcp_rn(T a) { return T(1) / a; }                                                 \
    inline T __##prefix##sqrt_rn(T a) { return sqrt(a); }                                                 \
    inline T fused(T a, T b, T c) { return fma(a, b, c); }
EMU_ARITHMETIC(float, f, __fmaf_rn)
EMU_ARITHMETIC(double, d, __fma_rn)

#define EMU_TO_INTEGER(I, from, F, to)                                                                  \
    inline I __##from##2##to##_rn(F value) { return emu::convert<I>(nearbyint(value)); }                \
    inline I __##from##2##to##_rd(F value) { return emu::convert<I>(floor(value)); }                    \
    inline I __##from##2##to##_ru(F value) { return emu::convert<I>(ceil(value)); }                     \
    inline I __##from##2##to##_rz(F value) { return emu::convert<I>(trunc(value)); }
EMU_TO_INTEGER(int, float, float, int)
EMU_TO_INTEGER(unsigned, float, float, uint)
EMU_TO_INTEGER(long long, float, float, ll)
EMU_TO_INTEGER(int, double, double, int)
EMU_TO_INTEGER(unsigned, double, double, uint)
EMU_TO_INTEGER(long long, double, double, ll)
inline float __int2float_rn(int value) { return float(value); }
inline float __uint2float_rn(unsigned value) { return float(value); }
inline float __ll2float_rn(long long value) { return float(value); }
inline float __double2float_rn(double value) { return float(value); }
inline double __int2double_rn(int value) { return value; }
inline double __uint2double_rn(unsigned value) { return value; }
inline double __ll2double_rn(long long value) { return double(value); }

inline int __float_as_int(float value) { return emu::bits<int>(value); }
inline unsigned __float_as_uint(float value) { return emu::bits<unsigned>(value); }
inline float __int_as_float(int value) { return emu::bits<float>(value); }
inline float __uint_as_float(unsigned value) { return emu::bits<float>(value); }
inline long long __double_as_longlong(double value) { return emu::bits<long long>(value); }
inline double __longlong_as_double(long long value) { return emu::bits<double>(value); }

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }
inline int __clz(int value) { return value ? __builtin_clz(unsigned(value)) : 32; }
inline int __clzll(long long value) { return value ? __builtin_clzll(static_cast<unsigned long long>(value)) : 64; }
inline int __mulhi(int a, int b) { return int((long long)a * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((unsigned long long)a * b >> 32); }
inline float __saturatef(float value) { return value > 0.f ? value < 1.f ? value : 1.f : 0.f; }  // NaN to 0

template <class T> T __ldg(const T* address) { return *address; }
template <class T> T __ldcs(const T* address) { return *address; }
template <class T> T __ldcg(const T* address) { return *address; }
template <class T> T __ldca(const T* address) { return *address; }
template <class T> void __stcs(T* address, T value) { *address = value; }
template <class T> void __stcg(T* address, T value) { *address = value; }

// One thread runs at a time, and none is interrupted.
template <class T, class F> T emu_atomic(T* address, F next) { const T old = *address; *address = next(old); return old; }
template <class T> T atomicAdd(T* address, T value) { return emu_atomic(address, [=](T old) { return T(old + value); }); }
template <class T> T atomicSub(T* address, T value) { return emu_atomic(address, [=](T old) { return T(old - value); }); }
template <class T> T atomicMax(T* address, T value) { return emu_atomic(address, [=](T old) { return old > value ? old : value; }); }
template <class T> T atomicMin(T* address, T value) { return emu_atomic(address, [=](T old) { return old < value ? old : value; }); }
template <class T> T atomicOr(T* address, T value) { return emu_atomic(address, [=](T old) { return T(old | value); }); }
template <class T> T atomicAnd(T* address, T value) { return emu_atomic(address, [=](T old) { return T(old & value); }); }
template <class T> T atomicExch(T* address, T value) { return emu_atomic(address, [=](T) { return value; }); }
template <class T> T atomicCAS(T* address, T expected, T value) {
    return emu_atomic(address, [=](T old) { return old == expected ? value : old; });
}

#define EMU_MIN_MAX(R, A, B)                                                                            \
    inline R min(A a, B b) { const R x = a, y = b; return x < y ? x : y; }                               \
    inline R max(A a, B b) { const R x = a, y = b; return x > y ? x : y; }
EMU_MIN_MAX(int, int, int)
EMU_MIN_MAX(unsigned, unsigned, unsigned)
EMU_MIN_MAX(unsigned, int, unsigned)
EMU_MIN_MAX(unsigned, unsigned, int)
EMU_MIN_MAX(long, long, long)
EMU_MIN_MAX(unsigned long, unsigned long, unsigned long)
EMU_MIN_MAX(long long, long long, long long)
EMU_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
#define EMU_FLOAT_MIN_MAX(R, A, B)                                                                      \
    inline R min(A a, B b) { return fmin(R(a), R(b)); }  /* a NaN gives way to the other */             \
    inline R max(A a, B b) { return fmax(R(a), R(b)); }
EMU_FLOAT_MIN_MAX(float, float, float)
EMU_FLOAT_MIN_MAX(double, double, double)
EMU_FLOAT_MIN_MAX(double, float, double)
EMU_FLOAT_MIN_MAX(double, double, float)
