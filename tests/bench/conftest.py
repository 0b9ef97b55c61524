"The benches print figures: nothing else between them, and on what machine at the end."
import os, platform


def pytest_report_teststatus(report):
    if report.passed: return 'passed', '', ''


def pytest_terminal_summary(terminalreporter):
    import torch
    load = f', load {os.getloadavg()[0]:.1f}' if hasattr(os, 'getloadavg') else ''
    terminalreporter.write_line(f'\n{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{load}')
