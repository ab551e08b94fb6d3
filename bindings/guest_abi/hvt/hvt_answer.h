/*
 * Converts a device's answer into hvt's result. Two answers have no result: DEVICE_BAD_RANGE ends
 * the run, and DEVICE_EXIT exits the run loop.
 */
#ifndef TENDER_HVT_ANSWER_H
#define TENDER_HVT_ANSWER_H

#include "device_ops.h"
#include "hypercall.h"

static inline enum verdict hvt_answer(struct vm *vm, enum device_answer answer, gpa_t gpa, uint64_t len,
                                      int32_t *ret)
{
    *ret = answer;
    if (__builtin_expect(answer >= 0, 1))
        return CONTINUE;
    return answer == DEVICE_EXIT ? EXIT : exit_bad_access(vm, gpa, len);
}

#endif
