// CUDA C++ for g++, as much of it as the kernels use: the same sources run on a CPU, to test their logic.
//
// Blocks run one after another. The threads of a block are coroutines of one processor thread, so that
// __syncthreads() holds. Asked to, they also change over before each atomic, which is where threads that
// work on the same memory at once could disturb each other.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <utility>
#include <vector>

#define TEXTSEG_HOST
#define __global__
#define __device__
#define __shared__ static

struct Extent {
    unsigned x, y, z;
};

static Extent threadIdx, blockIdx, blockDim, gridDim;

struct Coroutine {
    ucontext_t context;
    std::vector<char> stack;
    Extent thread;
    bool at_barrier, done;
};

static ucontext_t scheduler;
static Coroutine* running;
static std::function<void()> body;
static bool interleaved;

static void pause_thread() {
    swapcontext(&running->context, &scheduler);
    threadIdx = running->thread;
}

inline void __syncthreads() {
    running->at_barrier = true;
    pause_thread();
}

static void run_body() {
    body();
    running->done = true;
}

template <typename Number, typename Change>
Number atomically(Number* memory, Change change) {
    if (interleaved) pause_thread();
    Number before = *memory;
    *memory = change(before);
    return before;
}

inline unsigned long long atomicAdd(unsigned long long* memory, unsigned long long value) {
    return atomically(memory, [=](unsigned long long before) { return before + value; });
}

inline long long atomicMin(long long* memory, long long value) {
    return atomically(memory, [=](long long before) { return std::min(before, value); });
}

inline long long atomicMax(long long* memory, long long value) {
    return atomically(memory, [=](long long before) { return std::max(before, value); });
}

inline float to_float(unsigned short bits) {
    _Float16 half;
    std::memcpy(&half, &bits, sizeof half);
    return (float)half;
}

inline unsigned short to_half(float value) {
    _Float16 half = (_Float16)value;
    unsigned short bits;
    std::memcpy(&bits, &half, sizeof bits);
    return bits;
}

// What to run: blocks from the first to the grid's last, in an order drawn from the seed unless it is 0.
struct Run {
    unsigned grid[3], block[3], first[3];
    unsigned seed, interleaved;
};

static void run_block(std::vector<Coroutine>& threads) {
    for (Coroutine& thread : threads) {
        getcontext(&thread.context);
        thread.stack.resize(1 << 16);
        thread.context.uc_stack.ss_sp = thread.stack.data();
        thread.context.uc_stack.ss_size = thread.stack.size();
        thread.context.uc_link = &scheduler;
        thread.at_barrier = thread.done = false;
        makecontext(&thread.context, run_body, 0);
    }
    bool alive = true;
    while (alive) {
        alive = false;
        bool all_waiting = true;
        for (Coroutine& thread : threads) {
            if (thread.done || thread.at_barrier) continue;
            running = &thread;
            threadIdx = thread.thread;
            swapcontext(&scheduler, &thread.context);
            all_waiting = all_waiting && (thread.done || thread.at_barrier);
        }
        for (Coroutine& thread : threads) {
            if (all_waiting) thread.at_barrier = false;
            alive = alive || !thread.done;
        }
    }
}

static void run_grid(const Run& run) {
    gridDim = {run.grid[0], run.grid[1], run.grid[2]};
    blockDim = {run.block[0], run.block[1], run.block[2]};
    interleaved = run.interleaved;
    std::mt19937 random(run.seed);
    std::vector<Coroutine> threads;
    for (unsigned z = 0; z < blockDim.z; z++)
        for (unsigned y = 0; y < blockDim.y; y++)
            for (unsigned x = 0; x < blockDim.x; x++) threads.push_back({{}, {}, {x, y, z}, false, false});
    std::vector<Extent> blocks;
    for (unsigned z = run.first[2]; z < gridDim.z; z++)
        for (unsigned y = run.first[1]; y < gridDim.y; y++)
            for (unsigned x = run.first[0]; x < gridDim.x; x++) blocks.push_back({x, y, z});
    if (run.seed) std::shuffle(blocks.begin(), blocks.end(), random);
    for (const Extent& block : blocks) {
        blockIdx = block;
        if (run.seed) std::shuffle(threads.begin(), threads.end(), random);
        run_block(threads);
    }
}

template <typename... Arguments, std::size_t... Place>
void call(void (*kernel)(Arguments...), void** arguments, std::index_sequence<Place...>) {
    kernel(*static_cast<Arguments*>(arguments[Place])...);
}

// Arguments come as cuLaunchKernel takes them: a pointer to each.
template <typename... Arguments>
void run_kernel(void (*kernel)(Arguments...), const Run* run, void** arguments) {
    body = [=] { call(kernel, arguments, std::index_sequence_for<Arguments...>()); };
    run_grid(*run);
}

#define ON_CPU(NAME)                                                            \
    extern "C" void NAME##_on_cpu(const Run* run, void** arguments) {           \
        run_kernel(NAME, run, arguments);                                       \
    }                                                                           \
    extern "C" unsigned NAME##_arguments() { return count_arguments(NAME); }

template <typename... Arguments>
unsigned count_arguments(void (*)(Arguments...)) {
    return sizeof...(Arguments);
}
