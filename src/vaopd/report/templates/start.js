startTheme();
startRollouts();
startCharts();
startReload();
if (memory.read().scroll) {
  scrollTo(0, memory.read().scroll);
  memory.write({ scroll: 0 });
}
