/* Facts of the debug note about a VM and what it shares (debug_note.h). There is no code here that runs. */
#include <stddef.h>

#include "debug_note.h"
#include "trace.h"
#include "vm.h"

DEBUG_NOTE(debug_facts_of_vm)
{
    DEBUG_NUMBER("version", DEBUG_NOTE_VERSION);
    DEBUG_NUMBER("vm_memory_hva", offsetof(struct vm, memory) + offsetof(struct guest_memory, hva));
    DEBUG_NUMBER("vm_memory_bytes", offsetof(struct vm, memory) + offsetof(struct guest_memory, bytes));
    DEBUG_OFFSET("vm_shared", struct vm, shared);
    DEBUG_OFFSET("vm_devices", struct vm, devices);
    DEBUG_OFFSET("vm_device_end", struct vm, device_end);
    DEBUG_OFFSET("vm_extensions", struct vm, extensions);
    DEBUG_OFFSET("vm_resume", struct vm, resume);
    DEBUG_OFFSET("vm_resume_gpa", struct vm, resume.gpa);
    DEBUG_OFFSET("vm_resume_structure", struct vm, resume.structure);
    DEBUG_OFFSET("vm_resume_bytes_done", struct vm, resume.bytes_done);
    DEBUG_OFFSET("vm_resume_poll_deadline_ns", struct vm, resume.poll_deadline_ns);
    DEBUG_OFFSET("vm_resume_batch_done", struct vm, resume.batch_done);
    DEBUG_OFFSET("vm_trace", struct vm, trace);
    DEBUG_OFFSET("vm_stop_requested", struct vm, stop_requested);
    DEBUG_NUMBER("shared_bytes", sizeof(struct vm_shared));
    DEBUG_OFFSET("shared_event", struct vm_shared, event);
    DEBUG_OFFSET("shared_held", struct vm_shared, held);
    DEBUG_OFFSET("shared_trace_on", struct vm_shared, trace_on);
    DEBUG_OFFSET("shared_trace_head", struct vm_shared, trace_head);
    DEBUG_OFFSET("shared_trace_limit", struct vm_shared, trace_limit);
    DEBUG_OFFSET("shared_registers_until", struct vm_shared, registers_until);
    DEBUG_NUMBER("trace_records", TRACE_RECORDS);
}
