// The arithmetic of one view: crop, antialiased bicubic resize, flip, colour, blur, solarize; after every step the
// numbers are whole and between 0 and 255, as PIL's bytes.
//
// crops.cpp includes this file once per instruction set, each time in another namespace and with WIDE, the bytes of a
// vector register. Nothing here calls a template or inline function from outside: the copies could share it, and then
// a machine would meet instructions it does not have.

typedef float Wide __attribute__((vector_size(WIDE), aligned(4)));
typedef float Four __attribute__((vector_size(16), aligned(4)));

// Python's -fwrapv keeps a loop whose int index may wrap around from being vectorised.
typedef ptrdiff_t Index;

const int LANES = WIDE / 4;
const int ROWS = WIDE == 64 ? 16 : 8;    // source rows that are resampled together, at most MAX_ROWS
const int BLOCK = WIDE == 16 ? 48 : 96;  // numbers whose sums fit the registers; divides MAX_BLOCK
const int STRIP = 512;                   // pixels whose colours stay in the fastest cache

static inline float clamp_byte(float value) { return value < 0 ? 0 : value > 255 ? 255 : value; }
static inline float truncate(float value) { return (float)(int)value; }

STEP void load(const uint8_t* bytes, int count, float* __restrict numbers) {
    for (int i = 0; i < count; i++) numbers[i] = bytes[i];
}

STEP void store(const float* numbers, int count, uint8_t* __restrict bytes) {
    for (int i = 0; i < count; i++) bytes[i] = (uint8_t)(int)numbers[i];
}

// ---- Resampling ----------------------------------------------------------------------------------------------------

static inline float bicubic(float x) {  // Keys' cubic with a = -0.5
    float t = x < 0 ? -x : x;
    t = t > 2 ? 2 : t;
    float near = (1.5f * t - 2.5f) * t * t + 1, far = ((2.5f - 0.5f * t) * t - 4) * t + 2;
    return t < 1 ? near : far;
}

// `start` and `extent` in pixels of an axis of `length` pixels, beyond which the filter does not look.
STEP void fill_axis(Axis axis, double start, double extent, int length, int size, bool flip) {
    double scale = extent / size, stretch = scale > 1 ? scale : 1, support = 2 * stretch;
    for (int i = 0; i < size; i++) {
        double center = start + (i + 0.5) * scale;
        int row = flip ? size - 1 - i : i, first = (int)(center - support + 0.5), end = (int)(center + support + 0.5);
        first = first < 0 ? 0 : first;
        end = end > length ? length : end;
        int count = end - first < axis.taps ? end - first : axis.taps;
        float offset = (float)((first - center + 0.5) / stretch), step = (float)(1 / stretch), sum = 0;
        float* weights = axis.weights + (size_t)row * axis.taps;
        for (int t = 0; t < axis.taps; t++) weights[t] = t < count ? bicubic(offset + step * (float)t) : 0;
        for (int t = 0; t < axis.taps; t++) sum += weights[t];
        for (int t = 0; t < axis.taps; t++) weights[t] *= 1 / sum;
        axis.first[row] = first;
        axis.count[row] = count;
    }
}

// ROWS rows of bytes, `step` bytes apart, to groups of ROWS bytes.
static inline void interleave(const uint8_t* const* rows, int step, int count, uint8_t* __restrict groups) {
    const uint8_t* row[ROWS];
    for (int r = 0; r < ROWS; r++) row[r] = rows[r];
    for (Index i = 0; i < count; i++)
        for (int r = 0; r < ROWS; r++) groups[i * ROWS + r] = row[r][i * step];
}

static inline Wide round_bytes(Wide values) {
    typedef int Integers __attribute__((vector_size(WIDE)));
    const Wide zero = {}, most = zero + 255;
    values += 0.5f;
    values = values < most ? values : most;
    values = values > zero ? values : zero;
    return __builtin_convertvector(__builtin_convertvector(values, Integers), Wide);
}

// Weighted sums of the groups [column, channel] as groups [channel, column], rounded as PIL does between its passes.
template <int C>
STEP void mix_columns(const float* groups, const Axis& axis, int size, float* __restrict out) {
    const int parts = ROWS / LANES;
    for (int x = 0; x < size; x++) {
        const float *in = groups + axis.first[x] * C * ROWS, *weights = axis.weights + (size_t)x * axis.taps;
        Wide sums[C * parts] = {};
        for (int t = 0; t < axis.count[x]; t++, in += C * ROWS)
            for (int k = 0; k < C * parts; k++) sums[k] += weights[t] * *(const Wide*)(in + k * LANES);
        for (int k = 0; k < C * parts; k++)
            *(Wide*)(out + (k / parts * size + x) * ROWS + k % parts * LANES) = round_bytes(sums[k]);
    }
}

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int Indices __attribute__((vector_size(16)));
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Indices{__VA_ARGS__})
#endif

// `count` groups (rounded up to fours) to ROWS rows: transposes blocks of 4 x 4.
STEP void separate(const float* groups, int count, float* rows, size_t pitch) {
    for (int i = 0; i < count; i += 4)
        for (int r = 0; r < ROWS; r += 4) {
            const float* in = groups + i * ROWS + r;
            float* out = rows + r * pitch + i;
            const Four a = *(const Four*)in, b = *(const Four*)(in + ROWS);
            const Four c = *(const Four*)(in + 2 * ROWS), d = *(const Four*)(in + 3 * ROWS);
            const Four ab = SHUFFLE(a, b, 0, 4, 1, 5), cd = SHUFFLE(c, d, 0, 4, 1, 5);
            const Four ba = SHUFFLE(a, b, 2, 6, 3, 7), dc = SHUFFLE(c, d, 2, 6, 3, 7);
            *(Four*)out = SHUFFLE(ab, cd, 0, 1, 4, 5);
            *(Four*)(out + pitch) = SHUFFLE(ab, cd, 2, 3, 6, 7);
            *(Four*)(out + 2 * pitch) = SHUFFLE(ba, dc, 0, 1, 4, 5);
            *(Four*)(out + 3 * pitch) = SHUFFLE(ba, dc, 2, 3, 6, 7);
        }
}

// The weighted sum of `taps` rows, rounded; `length` is a multiple of BLOCK.
STEP void mix_rows(const float* const* rows, const float* weights, int taps, int length, uint8_t* __restrict out) {
    for (int x = 0; x < length; x += BLOCK) {
        Wide sums[BLOCK / LANES] = {};
        for (int t = 0; t < taps; t++)
            for (int k = 0; k < BLOCK / LANES; k++) sums[k] += weights[t] * *(const Wide*)(rows[t] + x + k * LANES);
        float block[BLOCK];
        memcpy(block, sums, sizeof block);
        uint8_t* bytes = out + x;
        for (int i = 0; i < BLOCK; i++) bytes[i] = (uint8_t)(int)clamp_byte(block[i] + 0.5f);
    }
}

// Crop and resize C interleaved channels of an image, `step` bytes from pixel to pixel, into C planes.
template <int C>
static void resample(const Workspace& w, const Crop& crop, int channel, int size, uint8_t* planes) {
    const int step = C == crop.channels ? 1 : crop.channels;
    for (int y = 0, ready = 0; y < size; y++) {
        const int first = w.down.first[y], count = w.down.count[y];
        for (; ready < first + count; ready += ROWS) {
            const uint8_t* rows[ROWS];
            for (int r = 0; r < ROWS; r++)
                rows[r] = crop.pixels + channel + (ready + r < crop.height ? ready + r : crop.height - 1) * crop.pitch;
            step == 1 ? interleave(rows, 1, C * crop.width, w.bytes) : interleave(rows, step, crop.width, w.bytes);
            load(w.bytes, C * crop.width * ROWS, w.groups);
            mix_columns<C>(w.groups, w.across, size, w.mixed);
            float* ring = w.ring + (size_t)(ready & (w.ring_rows - 1)) * w.pitch;
            separate(w.mixed, C * size, ring, w.pitch);
        }
        for (int t = 0; t < count; t++) w.taps[t] = w.ring + (size_t)((first + t) & (w.ring_rows - 1)) * w.pitch;
        mix_rows(w.taps, w.down.weights + (size_t)y * w.down.taps, count, (C * size + BLOCK - 1) / BLOCK * BLOCK, w.line);
        for (int c = 0; c < C; c++) memcpy(planes + ((size_t)c * size + y) * size, w.line + c * size, size);
    }
}

// ---- Colour --------------------------------------------------------------------------------------------------------

struct Strip {
    float red[STRIP], green[STRIP], blue[STRIP];
};

// An operation of VIEW, its factor (of the hue: the shift in 255ths of a turn), and what a blend mixes the pixel with.
struct Step {
    int operation;
    float factor, degenerate;
};

static inline float mix(float degenerate, float factor, float value) {
    return truncate(clamp_byte(degenerate + factor * (value - degenerate)));
}

static inline float luma(float red, float green, float blue) {  // PIL's weights, in 65536ths; exact in a float
    return truncate((19595 * red + 38470 * green + 7471 * blue + 32768) * (1 / 65536.0f));
}

STEP void blend(float* channel, const Step& step) {
    const float degenerate = step.degenerate, factor = step.factor;
    for (int i = 0; i < STRIP; i++) channel[i] = mix(degenerate, factor, channel[i]);
}

STEP void saturate(Strip& s, float factor) {  // factor 0 is PIL's greyscale
    for (int i = 0; i < STRIP; i++) {
        float grey = luma(s.red[i], s.green[i], s.blue[i]);
        s.red[i] = mix(grey, factor, s.red[i]);
        s.green[i] = mix(grey, factor, s.green[i]);
        s.blue[i] = mix(grey, factor, s.blue[i]);
    }
}

// From 0 within a sixth of a turn of `turn` to 1 two sixths away.
static inline float ramp(float hue, float turn) {
    float distance = (hue > turn ? hue - turn : turn - hue) - 1;
    return distance < 0 ? 0 : distance > 1 ? 1 : distance;
}

// Through PIL's HSV, whose hue and saturation are bytes. Red is opposite to a hue of 3 sixths, green is 2, blue 4.
STEP void rotate_hue(Strip& s, int shift) {
    for (int i = 0; i < STRIP; i++) {
        float r = s.red[i], g = s.green[i], b = s.blue[i];
        float high = r > g ? r : g, low = r < g ? r : g;
        high = high > b ? high : b;
        low = low < b ? low : b;
        float range = high - low, unit = 1 / (range > 1 ? range : 1);
        float hue = r == high ? (g - b) * unit : g == high ? 2 + (b - r) * unit : 4 + (r - g) * unit;
        hue = (hue < 0 ? hue + 6 : hue) * (255 / 6.0f);
        float sixths = (float)(((int)hue + shift) & 255) * (6 / 255.0f);
        float chroma = high * truncate(255 * range / (high > 1 ? high : 1)) * (1 / 255.0f);
        s.red[i] = truncate(high - chroma * (1 - ramp(sixths, 3)) + 0.5f);
        s.green[i] = truncate(high - chroma * ramp(sixths, 2) + 0.5f);
        s.blue[i] = truncate(high - chroma * ramp(sixths, 4) + 0.5f);
    }
}

static int sum_luma(const Strip& s, int count, bool rgb) {
    int sum = 0;
    for (int i = 0; i < count; i++) sum += (int)(rgb ? luma(s.red[i], s.green[i], s.blue[i]) : s.red[i]);
    return sum;
}

// Apply steps to a view of one or three planes; the rounded mean of its luma afterwards if asked for.
static float sweep(const Step* steps, int count, uint8_t* planes, int area, bool rgb, bool want_mean) {
    Strip s = {};
    float* channels[] = {s.red, s.green, s.blue};
    uint64_t sum = 0;
    for (int start = 0; start < area; start += STRIP) {
        int length = area - start < STRIP ? area - start : STRIP;
        for (int c = 0; c < (rgb ? 3 : 1); c++) load(planes + (size_t)c * area + start, length, channels[c]);
        for (const Step* step = steps; step < steps + count; step++)
            if (step->operation == SATURATION) saturate(s, step->factor);
            else if (step->operation == HUE) rotate_hue(s, (int)step->factor);
            else
                for (int c = 0; c < (rgb ? 3 : 1); c++) blend(channels[c], *step);
        for (int c = 0; c < (rgb ? 3 : 1) && count; c++) store(channels[c], length, planes + (size_t)c * area + start);
        if (want_mean) sum += sum_luma(s, length, rgb);
    }
    return (float)(int)((double)sum / area + 0.5);
}

static void jitter(const View& view, uint8_t* planes, int area, bool rgb) {
    Step steps[5];
    int count = 0, done = 0;
    for (int operation : view.order) {
        if (operation < 0 || (operation > CONTRAST && !rgb)) continue;
        double factor = view.factors[operation];
        steps[count++] = {operation, (float)(operation == HUE ? (int)(factor * 255) : factor), 0};
    }
    if (view.grayscale && rgb) steps[count++] = {SATURATION, 0, 0};
    for (int i = 0; i < count; i++)
        if (steps[i].operation == CONTRAST) {  // needs the mean of what comes before
            steps[i].degenerate = sweep(steps + done, i - done, planes, area, rgb, true);
            done = i;
        }
    if (count) sweep(steps + done, count - done, planes, area, rgb, false);
}

STEP void solarize(uint8_t* bytes, size_t count) {
    for (size_t i = 0; i < count; i++) bytes[i] = bytes[i] < 128 ? bytes[i] : (uint8_t)~bytes[i];
}

// ---- Blur: three extended box filters along each axis ---------------------------------------------------------------

static inline uint16_t share(uint16_t value, uint16_t weight) { return (uint16_t)((uint32_t)value * weight >> 16); }

// Filter `count` pixels whose neighbours are `stride` apart.
static inline void filter_box(const uint16_t* in, uint16_t* __restrict out, Index count, Index stride, int half, Box box) {
    const uint16_t* edge = in - (half + 1) * stride;
    for (Index i = 0; i < count; i++) {
        uint16_t sum = 0, ends = (uint16_t)(edge[i] + edge[i + 2 * (half + 1) * stride]);
        for (int k = 1; k <= 2 * half + 1; k++) sum = (uint16_t)(sum + edge[i + k * stride]);
        sum = share((uint16_t)(sum * box.up), box.whole);
        ends = share((uint16_t)(ends * box.up), box.part);
        out[i] = share((uint16_t)(sum + ends + box.rounding), box.down);
    }
}

STEP void filter(const uint16_t* in, uint16_t* out, Index count, Index stride, Box box) {
    switch (box.half) {  // constants let the compiler unroll; these are what radii up to 2 need
        case 0: return filter_box(in, out, count, stride, 0, box);
        case 1: return filter_box(in, out, count, stride, 1, box);
        default: return filter_box(in, out, count, stride, box.half, box);
    }
}

// Repeat the outermost pixels of an image into the margins around it: left and right, or above and below.
static void extend(uint16_t* image, Index size, Index margin, bool sideways) {
    const Index pitch = size + 2 * margin, along = sideways ? pitch : 1, across = sideways ? 1 : pitch;
    for (Index m = 1; m <= margin; m++)
        for (Index i = 0; i < size; i++) {
            image[i * along - m * across] = image[i * along];
            image[i * along + (size - 1 + m) * across] = image[i * along + (size - 1) * across];
        }
}

STEP void blur(uint8_t* plane, Index size, double radius, uint16_t* scratch) {
    const Box box = box_of(radius);
    const Index margin = box.half + 1, pitch = size + 2 * margin;
    uint16_t *image = scratch + margin * pitch + margin, *other = image + pitch * pitch;
    for (Index y = 0; y < size; y++)
        for (Index x = 0; x < size; x++) image[y * pitch + x] = plane[y * size + x];
    for (int pass = 0; pass < 6; pass++) {
        extend(image, size, margin, pass < 3);
        filter(image, other, size * pitch - 2 * margin, pass < 3 ? 1 : pitch, box);
        uint16_t* swap = image;
        image = other;
        other = swap;
    }
    for (Index y = 0; y < size; y++)
        for (Index x = 0; x < size; x++) plane[y * size + x] = (uint8_t)image[y * pitch + x];
}

// ---- A view --------------------------------------------------------------------------------------------------------

static void render(const View& view, const Crop& crop, const Workspace& w, int size, uint8_t* out) {
    const bool rgb = crop.channels == 3;
    const size_t area = (size_t)size * size, planes = rgb ? 3 : 1;
    fill_axis(w.across, view.box[0] - floor(view.box[0]), view.box[2], crop.width, size, view.flip);
    fill_axis(w.down, view.box[1] - floor(view.box[1]), view.box[3], crop.height, size, false);
    for (int c = 0; c < (rgb ? 1 : crop.channels); c++, out += planes * area) {
        rgb ? resample<3>(w, crop, 0, size, out) : resample<1>(w, crop, c, size, out);
        jitter(view, out, (int)area, rgb);
        for (size_t p = 0; p < planes && view.blur_radius > 0; p++)
            blur(out + p * area, size, view.blur_radius, w.blur);
        if (view.solarize) solarize(out, planes * area);
    }
}
