// to_float and to_half of common.cuh, bit for bit as cvt.f32.f16 and cvt.rn.f16.f32. Included at the end of a .cu file.
#pragma once

float to_float(Half value) {
    const unsigned sign = (value.bits & 0x8000u) << 16, rest = value.bits & 0x7fffu;
    if (rest >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);   // infinite or NaN
    if (rest < 0x0400u) return __uint_as_float(sign | __float_as_uint(float(rest) * 0x1p-24f));  // subnormal or 0
    return __uint_as_float(sign | ((rest << 13) + (112u << 23)));  // 112: the difference of the exponents' biases
}

Half to_half(float value) {  // to the nearest, ties to even
    const unsigned bits = __float_as_uint(value), magnitude = bits & 0x7fffffffu;
    const unsigned short sign = static_cast<unsigned short>(bits >> 16 & 0x8000u);
    unsigned rest;
    if (magnitude > 0x7f800000u) return Half{0x7fff};           // the one NaN that cvt makes
    if (magnitude >= 0x477ff000u) rest = 0x7c00u;               // 65520 and above: infinite
    else if (magnitude < 0x38800000u)                           // below 2**-14: a subnormal, a multiple of 2**-24
        rest = unsigned(nearbyintf(__uint_as_float(magnitude) * 0x1p24f));
    else rest = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    return Half{static_cast<unsigned short>(sign | rest)};
}
