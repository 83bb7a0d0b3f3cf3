"""On-policy distillation of vision-language models by visual advantage."""
