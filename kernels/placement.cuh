// Where a resized frame lies in a detector's input: picture_of of _placement.py, in the same integers.
#pragma once

enum Resize { LETTERBOX, LETTERBOX_CORNER, STRETCH };  // RESIZES of _placement.py

struct Picture { int width, height, left, top; };      // input px

__device__ __forceinline__ int rounded_quotient(long long above, int below, int resize) {
    const long long whole = above / below, rest = 2 * (above - whole * below);
    const bool up = resize != LETTERBOX_CORNER && (rest > below || (rest == below && whole % 2));
    return max(1, static_cast<int>(whole) + up);
}

__device__ __forceinline__ Picture picture_of(int frame_width, int frame_height, int width, int height, int resize) {
    if (resize == STRETCH) return {width, height, 0, 0};
    Picture picture = {width, height, 0, 0};
    if (static_cast<long long>(width) * frame_height <= static_cast<long long>(height) * frame_width)
        picture.height = rounded_quotient(static_cast<long long>(frame_height) * width, frame_width, resize);
    else
        picture.width = rounded_quotient(static_cast<long long>(frame_width) * height, frame_height, resize);
    if (resize == LETTERBOX) picture.left = (width - picture.width) / 2, picture.top = (height - picture.height) / 2;
    return picture;
}
